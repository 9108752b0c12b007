"""Names of emoji, learned from three drawings and found for a fourth.

    python experiments/words_202611/emoji.py OUT [--locked=REF] [--smoke]

Fetches emoji-datasource-{google,apple,facebook,twitter} 16.0.0 by npm into OUT, trains on google's, apple's and facebook's pictures
and retrieves the names of twitter's. The same command goes on where it stopped. --locked: an encoder for LiT, such as a
DINOv2-S that `vit convert --image_size=126` wrote. Google's drawings are Apache-2.0, Twitter's CC-BY 4.0; Apple's and Facebook's
are not free and are used for measuring alone.
"""

import argparse
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vit_jax import inference
from vit_jax.__main__ import dispatch
from vit_jax.config.load import load
from vit_jax.data import tokenizers
from vit_jax.train.fit import fit
from vit_jax.train.metrics import read_rows

VERSION = "16.0.0"
TRAIN, TEST = ("google", "apple", "facebook"), "twitter"
UNSEEN = 200  # names that no training caption has
CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"width": 128, "depth": 4, "mlp_dim": 512, "num_heads": 4}


def fetch(out: Path, vendor: str) -> Path:
    """Return the package's file, fetched by npm where it is not there yet."""
    file = out / f"emoji-datasource-{vendor}-{VERSION}.tgz"
    if not file.exists():
        subprocess.run(
            ["npm", "pack", f"emoji-datasource-{vendor}@{VERSION}"], cwd=out, check=True, capture_output=True
        )
    return file


def read_emoji(file: Path, vendor: str) -> tuple[list[dict], dict[str, bytes]]:
    """Return the descriptions of a package, and its pictures of 64 px by file name."""
    pictures, described = {}, []
    with tarfile.open(file) as archive:
        for member in archive:
            if member.name == "package/emoji.json":
                described = json.load(archive.extractfile(member))
            elif member.isfile() and member.name.startswith(f"package/img/{vendor}/64/"):
                pictures[Path(member.name).name] = archive.extractfile(member).read()
    return described, pictures


def prepare(out: Path) -> None:
    """Write the pictures over random colours, train.jsonl, test.jsonl, unseen.jsonl and the tokenizer."""
    if (out / "tokenizer.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    packages = {vendor: read_emoji(fetch(out, vendor), vendor) for vendor in (*TRAIN, TEST)}
    described = packages[TEST][0]
    kept = [e for e in described if e.get("name") and all(e["image"] in images for _, images in packages.values())]
    rng = np.random.default_rng(0)
    unseen = set(rng.permutation(len(kept))[:UNSEEN].tolist())
    rows: dict[str, list[dict]] = {"train": [], "test": [], "unseen": []}
    for vendor, (_, images) in packages.items():
        (out / vendor).mkdir(exist_ok=True)
        for i, emoji in enumerate(kept):
            (out / "picture.png").write_bytes(images[emoji["image"]])
            picture = Image.open(out / "picture.png").convert("RGBA")
            ground = Image.new("RGBA", picture.size, (*rng.integers(0, 256, 3).tolist(), 255))
            Image.alpha_composite(ground, picture).convert("RGB").resize((64, 64)).save(out / vendor / emoji["image"])
            row = {"image": f"{vendor}/{emoji['image']}", "text": emoji["name"].lower()}
            parts = (
                (["train"] if i not in unseen else [])
                if vendor in TRAIN
                else ["test", *(["unseen"] if i in unseen else [])]
            )
            for part in parts:
                rows[part].append(row)
    for part, lines in rows.items():
        (out / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = tokenizers.train([row["text"] for row in rows["train"]], 2000)
    (out / "tokenizer.json").write_text(made.packed())
    print({part: len(lines) for part, lines in rows.items()}, "pairs")


def features_of(out: Path, locked: str) -> Path:
    """Return the file with the features of the training pictures by the locked encoder."""
    file = out / f"features_{hashlib.sha256(locked.encode()).hexdigest()[:8]}.npy"
    if not file.exists():
        dispatch(["features", f"--model={locked}", f"--data=pairs:{out}/train.jsonl", "--split=all", f"--out={file}"])
    return file


def config_of(out: Path, objective: str, seed: int, smoke: bool, locked: str):
    """Return the config of a run."""
    name = f"{CONFIGS / objective}.py:data=pairs:{out}/train.jsonl,tokenizer={out}/tokenizer.json,tokens=16"
    tokenize, size = f"tokenize({str(out / 'tokenizer.json')!r}, 16", 64
    if objective == "lit":
        features = features_of(out, locked)
        width, shape = np.load(features, mmap_mode="r").shape[1], inference.load(locked).image_shape
        config, size = load(f"{name},model={locked},features={features},width={width}"), shape[0]
        config.task.image_shape = shape
        config.task.text.update(SMALL)
    else:
        config = load(name)
        config.model.update(SMALL)
        config.task.text.update({**SMALL, "out_dim": 128})
        config.data.preprocess = f"random_resized_crop(64, 0.6)|flip|color_jitter(0.3, 0.3, 0.3)|{tokenize})"
    if objective == "clip":
        config.task.projection = 128
    config.seed, config.batch_size, config.epochs = seed, 128, None
    config.steps = 6 if smoke else 600
    config.data.source.split = "all"
    config.log.every = 2 if smoke else 50
    config.checkpoint.every = config.steps
    config.evals = {
        part: {
            "type": "retrieval.Retrieval", "source": {"type": "pairs.Pairs", "path": f"{out}/{part}.jsonl"},
            "preprocess": f"resize({size})|{tokenize}, 1)", "ks": (1, 5), "batch_size": 256,
        }
        for part in ("test", "unseen")
    }  # fmt: skip
    return config


def draw(out: Path, workdir: Path, file: Path, columns: int = 8) -> None:
    """Draw pictures of twitter's with the three nearest names; names of no training caption in italics."""
    rows, unseen = (
        [json.loads(line) for line in (out / f"{part}.jsonl").read_text().splitlines()] for part in ("test", "unseen")
    )
    new, names, loaded = {row["text"] for row in unseen}, [row["text"] for row in rows], inference.load(workdir)
    shown = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))[: 2 * columns]]
    images = loaded([str(out / row["image"]) for row in shown])["image_embedding"]
    nearest = np.argsort(-images @ loaded.embed_texts(names).T, axis=1)[:, :3]
    figure = Figure(figsize=(1.7 * columns, 4.9), layout="constrained")
    for axis, row, found in zip(figure.subplots(2, columns).flat, shown, nearest, strict=True):
        axis.imshow(Image.open(out / row["image"]))
        axis.set(xticks=[], yticks=[])
        axis.set_title(row["text"][:26], fontsize=8, style="italic" if row["text"] in new else "normal")
        axis.set_xlabel("\n".join(names[i][:28] for i in found), fontsize=7)
    figure.savefig(file, dpi=110)
    print(f"picture: {file}")


def main() -> None:
    """Prepare, train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--locked", default="", metavar="REF", help="an encoder for LiT; without one LiT is left out")
    parser.add_argument("--smoke", action="store_true", help="6 steps of one seed, to see that all of it runs")
    flags = parser.parse_args()
    prepare(flags.out)
    seeds = (0,) if flags.smoke else (0, 1, 2)
    print(
        "| objective | seed | names of | image to text @1, @5 | text to image @1, @5 | chance @1, @5 |\n"
        + "| --- " * 6
        + "|"
    )
    for objective in ("siglip", "clip", *(["lit"] if flags.locked else [])):
        for seed in seeds:
            workdir = flags.out / "runs" / f"{objective}_{seed}{'_smoke' if flags.smoke else ''}"
            fit(config_of(flags.out, objective, seed, flags.smoke, flags.locked), workdir)
            found = {key: value for row in read_rows(workdir / "metrics.jsonl") for key, value in row.items()}
            for part in ("test", "unseen"):
                ways = [[found[f"{part}/{way}@{k}"] for k in (1, 5)] for way in ("image_to_text", "text_to_image")]
                shares = [f"{100 * a:.1f} %, {100 * b:.1f} %" for a, b in ways]
                count = found[f"{part}/num_texts"]
                chance = f"{100 / count:.2f} %, {500 / count:.2f} %"
                print(f"| {objective} | {seed} | {part} | {shares[0]} | {shares[1]} | {chance} |", flush=True)
    draw(flags.out, workdir, flags.out / f"names{'_smoke' if flags.smoke else ''}.png")


if __name__ == "__main__":
    main()
