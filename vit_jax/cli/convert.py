"""Convert a model to another library's format: vit convert --model=REF --out=PATH --to=npz|timm|hf|open_clip|workdir."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.cli.command import Parser, number_flag, numbers_flag, path_flag
from vit_jax.printable import line
from vit_jax.types import Fraction, Units, UserError

FORMATS = ("npz", "timm", "hf", "open_clip", "workdir")
LIBRARIES = {"timm": "timm", "hf": "transformers"}
TOLERANCE = 1e-3  # in standard deviations of the logits; rounding errors stay well below

EXAMPLES = """
vit convert --model=workdirs/photos --out=photos_timm --to=timm
vit convert --model=workdirs/photos --out=photos_hf --to=hf --push=OWNER/NAME
vit convert --model=hf:timm/vit_base_patch16_224.augreg_in21k --out=b16.npz --to=npz
vit convert --model=hf:facebook/dinov2-small --out=dinov2_224 --to=workdir --image_size=224
vit convert --model=workdirs/flexivit --out=vit_p8 --to=timm --patch_size=8
vit convert --model=workdirs/siglip_tuned --average=hf:google/siglip-base-patch16-224 --share=0.5 --out=averaged --to=workdir
"""


def main(argv: Sequence[str]) -> int:
    """Write the model, read it back and compare the outputs; the exit code is 1 if they differ."""
    flags = make_parser().parse(argv)
    if flags.image_size is not None and len(flags.image_size) > 2:
        raise UserError(f"--image_size={','.join(map(str, flags.image_size))}: give one number, or height and width.")
    if flags.share is not None and flags.average is None:
        raise UserError("--share is the weight of --average=REF; found no --average.")
    if stores.is_remote(flags.out):
        raise UserError(f"--out={flags.out} is on an object store; convert to a local path, then copy it there.")
    out = Path(flags.out)
    if os.path.lexists(out):
        raise UserError(f"--out={flags.out} exists; give a new path.")
    if flags.to == "npz" and out.suffix != ".npz":
        raise UserError(f"--out={flags.out} must end in .npz for --to=npz.")

    from vit_jax import inference
    from vit_jax.pretrained import hub

    if flags.push is not None:
        hub.check_name(flags.push, "--push")
        if flags.to not in LIBRARIES:
            raise UserError(f"--push uploads a folder of --to={' or '.join(LIBRARIES)}; found --to={flags.to}.")
    loaded = inference.load(flags.model, trust=flags.trust)
    notes = [*loaded.notes]
    if flags.average is not None:
        share = 0.5 if flags.share is None else flags.share
        loaded = averaged(loaded, inference.load(flags.average, trust=flags.trust), share)
        notes.append(f"The weights are {1 - share:g} of {flags.model} and {share:g} of {flags.average}.")
    if flags.image_size is not None:
        from vit_jax.train.begin_from import at_size

        loaded = at_size(loaded, (flags.image_size[0], flags.image_size[-1]))
        notes.append(
            f"Its positions were resized for images of {loaded.image_shape[0]} x {loaded.image_shape[1]} pixels."
        )
    if flags.patch_size is not None:
        from vit_jax.train.begin_from import at_patch_size

        loaded = at_patch_size(loaded, flags.patch_size)
        notes.append(f"A ViT with patches of {flags.patch_size} pixels, from a FlexiViT.")
    if flags.to != "workdir":
        loaded, more = for_classifiers(loaded, flags.to)
        notes += more
    notes += write(loaded, out, flags.to)
    for note in notes:
        print(f"note: {line(note)}")
    size = sum(leaf.size for leaf in loaded.arrays.values())
    print(f"wrote {out}: {size:,} parameters, {loaded.spec['num_classes']} classes")
    if flags.to != "npz":
        unchanged = flags.average is None and flags.image_size is None and flags.patch_size is None
        write_card(loaded, flags.model, out, flags.to, notes, measured=unchanged)
    if not check(loaded, out, flags.to, flags.trust):
        return 1
    if flags.push is not None:
        print(f"uploaded to {hub.upload(out, flags.push)}")
    return 0


def make_parser() -> Parser:
    """Return the flags of the command."""
    parser = Parser(prog="vit convert", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--model", required=True, metavar="REF", help="any model reference")
    parser.add_argument("--out", type=path_flag, required=True, metavar="PATH", help="a new folder, or a new .npz file")
    parser.add_argument(
        "--to", required=True, choices=FORMATS, help="npz: the original repository's file; else a folder"
    )
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="then upload the folder to the Hugging Face hub, as private"
    )
    parser.add_argument(
        "--average",
        metavar="REF",
        help="write the mean with the weights of this model, such as the one that was fine-tuned",
    )
    parser.add_argument(
        "--share", type=number_flag(Fraction), help="the weight of --average in the mean, from 0 to 1; default 0.5"
    )
    parser.add_argument(
        "--image_size",
        type=numbers_flag(Units),
        metavar="SIZE",
        help="resize the positions for images of another size, such as 384, or 384,512 for height and width",
    )
    parser.add_argument(
        "--patch_size",
        type=number_flag(Units),
        metavar="SIZE",
        help="write a FlexiViT as a ViT with patches of this size",
    )
    return parser


def averaged(loaded: Any, other: Any, share: float) -> Any:
    """Average the weights of two models, as WiSE-FT does (arXiv:2109.01903).

    Raises UserError unless both have the same parameters.
    """
    import jax

    from vit_jax import trees

    ours, theirs = (trees.flatten(jax.device_get(model.weights)) for model in (loaded, other))
    shapes, expected = ({name: np.shape(x) for name, x in flat.items()} for flat in (ours, theirs))
    different = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if different:
        raise UserError(
            f"--average has other parameters: {', '.join(different[:5])}{' and more' if len(different) > 5 else ''}; expected a "
            "model of the same network and classes, such as the one that was fine-tuned."
        )
    mean = {name: ((1 - share) * np.asarray(x, np.float32) + share * theirs[name]) for name, x in ours.items()}
    return dataclasses.replace(loaded, weights=trees.unflatten(loaded.weights, mean))


def for_classifiers(loaded: Any, to: str) -> tuple[Any, list[str]]:
    """Return the model in the form that formats for classifiers can express, and notes on what they cannot.

    Of a model that predicts parts of images this is the encoder; the scale of a regression's numbers becomes a part of the
    head.
    """
    from vit_jax import trees

    if predicts_parts(loaded):
        if to == "hf":
            return loaded, []
        spec = {**loaded.spec, "num_classes": 0}
        note = "Only its image encoder is written, without what predicts parts of images."
        return dataclasses.replace(loaded, spec=spec, names_known=False), [note]
    loss = getattr(loaded.task, "loss_name", "softmax_xent")
    if type(loaded.task).__name__ != "Regress":
        several = loss in ("sigmoid_xent", "bce") and not loaded.has_untrained_head
        note = (
            "Its classes do not exclude each other: a probability is the sigmoid of a logit. The format cannot say so."
        )
        return loaded, [note] if several else []
    center, width = (np.asarray(x, np.float32) for x in (loaded.task.target_mean, loaded.task.target_std))
    scaled = {"params/head/kernel": lambda x: x * width, "params/head/bias": lambda x: x * width + center}
    weights = trees.map_named(lambda name, x: scaled[name](x) if name in scaled else x, loaded.weights)
    task = dataclasses.replace(loaded.task, target_mean=0.0, target_std=1.0)
    note = f"Its outputs are numbers ({', '.join(loaded.class_names[:5])}), not logits of classes. The format cannot say so."
    return dataclasses.replace(loaded, weights=weights, task=task), [note]


def write_card(loaded: Any, reference: str, out: Path, to: str, notes: Sequence[str], measured: bool = True) -> None:
    """Write README.md next to a model, with the facts of the run that trained it and, if `measured`, its results."""
    from vit_jax import inference
    from vit_jax.checkpoint import saver, workdir
    from vit_jax.pretrained.card import make_card
    from vit_jax.train.metrics import read_rows

    place, step, _ = inference.parse_reference(reference)
    record, metrics = None, {}
    if loaded.config and not stores.is_remote(reference):
        record = workdir.read(place)
        step = saver.steps_in(Path(place) / "checkpoints")[-1] if step is None else step
        rows = [row for row in read_rows(Path(place) / "metrics.jsonl") if row["step"] == step]
        metrics = {key: value for row in rows for key, value in row.items()} if measured else {}
    size = sum(leaf.size for leaf in loaded.arrays.values())
    (out / "README.md").write_text(make_card(to, loaded, size, record, metrics, notes), encoding="utf-8")


def write(loaded: Any, out: Path, to: str) -> list[str]:
    """Write a loaded model in a format; return notes on what the format cannot express."""
    from vit_jax import trees
    from vit_jax.checkpoint import workdir
    from vit_jax.pretrained import google, huggingface, mae, swin, timm, upernet, yolos
    from vit_jax.pretrained.pretrained import from_spec

    if hasattr(loaded.task, "text"):
        return write_towers(loaded, out, to)
    if to == "open_clip":
        raise UserError("--to=open_clip is for a pair of towers; found one for images only.")
    params, (height, width, _) = loaded.arrays, loaded.image_shape
    mean, std = loaded.scale
    if to == "workdir":
        own = trees.flatten(loaded.weights["params"])
        # For a task with more than a backbone, such as a decoder, write only the backbone, unless the rest predicts.
        if predicts_parts(loaded):
            params = {name: np.asarray(leaf) for name, leaf in own.items()}
        task = loaded.task_spec if own.keys() == params.keys() else None
        task = task or {"type": "classify.Classify", "mean": mean, "std": std}
        config = {"model": loaded.spec, "task": task, "data": {}, "evals": {}}
        data = {
            "class_names": loaded.class_names,
            "names_known": loaded.names_known,
            "image_shape": loaded.image_shape,
            "num_examples": 0,
            "preprocess": loaded.preprocess_spec,
            "init": {"posemb": loaded.posemb, "patches": loaded.patches},
            **fields_of(loaded),
        }
        state = trees.flatten({key: tree for key, tree in loaded.weights.items() if key != "params"})
        workdir.write_model(out, config, data, params, state)
        return []
    preprocessing = from_spec(loaded.preprocess_spec, mean, std)
    notes = []
    if preprocessing is None:
        preprocessing = from_spec(f"resize(({height}, {width}))", mean, std)
        notes = [f"The format cannot express the preprocessing {loaded.preprocess_spec!r}; written as a resize."]
    with_decoder = type(loaded.task).__name__ == "Mae" and loaded.spec["type"] == "vit.ViT" and loaded.model.class_token
    if to == "hf" and (predicts_parts(loaded) or with_decoder):
        whole = {name: np.asarray(leaf, np.float32) for name, leaf in trees.flatten(loaded.weights["params"]).items()}
        whole |= {
            name: np.asarray(leaf)
            for name, leaf in trees.flatten(loaded.weights).items()
            if not name.startswith("params/")
        }
        module = {"Segment": upernet, "Detect": yolos, "Mae": mae}.get(type(loaded.task).__name__)
        if module is None:
            raise UserError(f"transformers has no network for {type(loaded.task).__name__}; use --to=workdir.")
        return notes + module.write(out, loaded.spec, loaded.task_spec, whole, preprocessing, loaded.class_names)
    writer: Callable[..., list[str]] = {"npz": google, "timm": timm, "hf": huggingface}[to].write
    if loaded.spec["type"] == "swin.Swin" and to in LIBRARIES:
        writer = functools.partial(swin.write, library=LIBRARIES[to])
    return notes + writer(out, loaded.spec, params, preprocessing, loaded.class_names if loaded.names_known else None)


def write_towers(loaded: Any, out: Path, to: str) -> list[str]:
    """Write a pair of towers in a format; return notes on what the format cannot express."""
    import jax

    from vit_jax import trees
    from vit_jax.checkpoint import workdir
    from vit_jax.data import tokenizers
    from vit_jax.pretrained import big_vision_towers, huggingface_towers, open_clip
    from vit_jax.pretrained.pretrained import from_spec

    params = {name: np.asarray(x) for name, x in trees.flatten(jax.device_get(loaded.weights["params"])).items()}
    task, (height, width, _) = loaded.task.config, loaded.image_shape
    if to == "workdir":
        texts = {"length": loaded.task.text.length}
        digest = {} if loaded.tokenizer is None else {"texts": texts | {"tokenizer": loaded.tokenizer.digest}}
        data = {
            "class_names": (), "image_shape": loaded.image_shape, "num_examples": 0, "preprocess": loaded.preprocess_spec,
            "layout": {"image": (loaded.image_shape, "uint8"), "text": ([loaded.task.text.length], "int32")},
            "fields": {"image": "Image", "text": "Tokens"}, "init": {"posemb": loaded.posemb, "patches": loaded.patches},
        }  # fmt: skip
        workdir.write_model(out, {"model": loaded.spec, "task": task, "data": {}, "evals": {}}, data | digest, params)
        if loaded.tokenizer is not None:
            workdir.write_text(out / tokenizers.FILE, loaded.tokenizer.packed())
        return []
    writers = {"hf": huggingface_towers.write, "npz": big_vision_towers.write, "open_clip": open_clip.write}
    if to not in writers:
        raise UserError(f"--to={to} is for images only; a pair of towers goes to {', '.join(writers)} or workdir.")
    images = from_spec(loaded.preprocess_spec, task["mean"], task["std"])
    notes = []
    if images is None:
        images = from_spec(f"resize(({height}, {width}))", task["mean"], task["std"])
        notes = [f"The format cannot express the preprocessing {loaded.preprocess_spec!r}; written as a resize."]
    assert images is not None
    return notes + writers[to](out, loaded.spec, task, params, images)


def predicts_parts(loaded: Any) -> bool:
    """Return whether a model predicts parts of images, pixels or boxes, with parameters outside its backbone."""
    from vit_jax.explain.pictures import predicts

    return predicts(loaded) != "images"


def fields_of(loaded: Any) -> dict[str, Any]:
    """Return the layout and the fields of the examples of a task that predicts parts of images."""
    kinds = getattr(loaded.task, "fields", None)
    if not predicts_parts(loaded) or not kinds:
        return {}
    layout = {"image": (loaded.image_shape, "uint8")}
    return {"layout": layout, "fields": {key: type(field).__name__ for key, field in kinds.items()}}


def outputs_of(loaded: Any, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return outputs of images; outputs of several names are concatenated."""
    found = loaded.predictor(loaded.weights, {"image": images}, names)[1]
    return np.concatenate([np.asarray(found[name]) for name in names], axis=-1)


def check(loaded: Any, out: Path, to: str, trust: bool = False) -> bool:
    """Compare the written model with the original on random images, here and in the target library; print the result.

    An untrained head gives the same logits for every network, so then the features before it are compared. Formats
    without a dtype are read in float32, so the original is computed in float32, too.
    """
    images = np.random.default_rng(0).integers(0, 256, (2, *loaded.image_shape), np.uint8)
    names = compared(loaded, to)
    original = loaded if to == "workdir" else in_float32(loaded, alone=names == ("features",))
    output, expected = " and ".join(names), outputs_of(original, images, names)
    tolerance = TOLERANCE * max(float(expected.std()), 1e-6)

    def compare(reader: str, found: np.ndarray) -> bool:
        difference = float(np.abs(found - expected).max())
        if difference <= tolerance:
            print(f"OK: {reader} gives the same {output} (max difference {difference:.1e})")
        else:
            print(
                f"FAILED: {reader} gives other {output} (max difference {difference:.1e}, expected <= {tolerance:.1e})"
            )
        return difference <= tolerance

    is_same = compare("vit_jax", outputs_of(_read_back(loaded, out, to, trust), images, names))
    library = LIBRARIES.get(to)
    if library and output == "features":
        print(f"SKIPPED: {library}; the head is untrained, so its logits would not show a difference")
    elif library and (load := _loader(library, type(loaded.task).__name__)):
        import jax.numpy as jnp

        from vit_jax.tasks.task import normalize

        pixels = np.asarray(normalize(jnp.asarray(images), loaded.task.mean, loaded.task.std))
        try:
            logits = _torch_logits(load(out), pixels.transpose(0, 3, 1, 2))
        except Exception as error:  # the library may raise anything
            is_same = False
            print(f"FAILED: {library} cannot load it: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        else:
            is_same &= compare(library, logits)
    if not is_same:
        print(f"The copy gives other {output}; do not use it, and report this with the model's name.")
    return is_same


def compared(loaded: Any, to: str) -> tuple[str, ...]:
    """Return the outputs that show whether a written model is the same."""
    if predicts_parts(loaded) and to in ("hf", "workdir"):
        return ("box_logits", "box_outputs") if hasattr(loaded.task, "detection_tokens") else ("pixel_outputs",)
    return ("features",) if predicts_parts(loaded) or loaded.has_untrained_head else ("logits",)


def in_float32(loaded: Any, alone: bool) -> Any:
    """Return the model computed in float32; alone: only its image encoder, without the rest of its task."""
    from vit_jax.export.program import plain_form
    from vit_jax.tasks.classify import Classify

    task, weights = plain_form(loaded, "float32")
    if alone and not hasattr(task, "text"):
        mean, std = loaded.scale
        model, weights = task.backbone(weights)
        task = Classify(model, mean=mean, std=std)
    return dataclasses.replace(loaded, task=task, weights=weights)


def _read_back(loaded: Any, out: Path, to: str, trust: bool) -> Any:
    """Load the written model; fields and normalization that a .npz does not contain are taken from the original."""
    from vit_jax import inference

    if to != "npz":
        return inference.load(out, trust=trust)
    changes = {key: loaded.spec[key] for key in ("mlp", "norm_eps", "stem") if key in loaded.spec}
    copy = inference.load(out, changes=changes)
    if hasattr(loaded.task, "text"):
        return dataclasses.replace(copy, task=dataclasses.replace(loaded.task, model=copy.model))
    mean, std = loaded.scale
    task: Any = copy.task
    return dataclasses.replace(copy, task=dataclasses.replace(task, mean=mean, std=std))


def _loader(library: str, task: str) -> Callable[[Path], Any] | None:
    """Return a function that loads a folder in the library, or None, with a message, if it cannot be imported."""
    try:
        if library == "timm":
            import timm

            return lambda out: timm.create_model(f"local-dir:{out}", pretrained=True)
        # transformers imports its models only when they are accessed.
        import transformers
        from transformers import ViTForImageClassification  # noqa: F401

        name = {"Segment": "UperNetForSemanticSegmentation", "Detect": "YolosForObjectDetection"}.get(
            task, "AutoModelForImageClassification"
        )
        return lambda out: getattr(transformers, name).from_pretrained(str(out))
    except (ImportError, RuntimeError) as error:
        print(f"SKIPPED: {library} cannot be imported ({str(error).partition(chr(10))[0][:100]})")
        return None


def _torch_logits(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Compute the logits of a PyTorch model, and the boxes of a detector, for normalized images [b, c, h, w]."""
    import torch

    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(pixels.copy()))
    logits = getattr(outputs, "logits", outputs).numpy()
    if logits.ndim == 4:  # of pixels
        return logits.transpose(0, 2, 3, 1)
    return np.concatenate([logits, outputs.pred_boxes.numpy()], axis=-1) if logits.ndim == 3 else logits
