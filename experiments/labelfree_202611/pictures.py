"""Draw what an MAE reconstructs, where the class token of a ViT attends to, or the curves of the study.

    python experiments/labelfree_202611/pictures.py WORKDIR IMAGES OUT.png
    python experiments/labelfree_202611/pictures.py EXPLAINED/attention.npz OUT.png
    python experiments/labelfree_202611/pictures.py workdirs OUT.png

IMAGES is a folder of class folders; one image of each class is drawn, without its masked patches and as it is reconstructed.
EXPLAINED is a folder that `vit explain --method=attention` wrote; the heads of the last layer are drawn. `workdirs` has the runs of
the README.
"""

import json
import sys
from pathlib import Path

import einops
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vit_jax import inference
from vit_jax.train.metrics import read_rows

COLOURS = {"random": "tab:gray", "mae": "tab:blue", "dino": "tab:orange"}


def draw(workdir: str, images: Path, out: Path) -> None:
    """Write a picture with three rows: images, visible patches, and the decoder's pixels in place of the masked ones."""
    loaded = inference.load(workdir)
    files = [sorted(folder.iterdir())[7] for folder in sorted(images.iterdir())]
    pixels = np.stack([loaded.preprocess(Image.open(file)) for file in files])
    task, params = loaded.task, loaded.weights["params"]
    batch = task.prepare({"image": jnp.asarray(pixels)}, jax.random.key(1), {})
    predicted, masked = task.reconstruct(params, batch, jax.random.key(0))
    rows, columns = task.model.grid(pixels.shape[1:3])
    split = {"r": rows, "k": columns, "c": pixels.shape[3]}
    patches = einops.rearrange(pixels / 255.0, "b (r p) (k q) c -> b (r k) (p q c)", **{k: split[k] for k in "rk"})
    if task.norm_pixels:  # the decoder knows patches up to their mean and deviation
        scale, shift = patches.std(axis=2, ddof=1, keepdims=True), patches.mean(axis=2, keepdims=True)
        predicted = np.asarray(predicted) * scale + shift
    hidden = np.asarray(masked)[:, :, None]
    shown = [patches, np.where(hidden, 0.5, patches), np.where(hidden, predicted, patches)]
    height = pixels.shape[1] // rows
    whole = [
        einops.rearrange(kind, "b (r k) (p q c) -> b (r p) (k q) c", p=height, **split).clip(0, 1) for kind in shown
    ]
    save(dict(zip(("image", "visible", "rebuilt"), whole, strict=True)), out)


def draw_attention(arrays: Path, out: Path) -> None:
    """Write a picture with the images, and the weights [rows, columns] of each head of the last layer below them."""
    found = np.load(arrays, allow_pickle=False)
    heads = found["weights"][:, -1].swapaxes(0, 1)
    save({"image": found["images"], **{f"head {i + 1}": head for i, head in enumerate(heads)}}, out)


def draw_curves(workdirs: Path, out: Path) -> None:
    """Write a picture with the losses of pretraining, and of fine-tuning on 1 % of the labels, the mean of its draws."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = dict(zip(("mae", "dino", "one"), figure.subplots(1, 3), strict=True))
    for name, title in (("mae", "MAE: squared error"), ("dino", "DINO: cross-entropy")):
        rows = [row for row in read_rows(workdirs / name / "metrics.jsonl") if "loss" in row]
        axes[name].plot([row["step"] for row in rows], [row["loss"] for row in rows])
        axes[name].set(title=title, xlabel="step")
    losses: dict[tuple[str, float], list[np.ndarray]] = {}
    for folder in sorted(path.parent for path in (workdirs / "one").glob("*/config.json")):
        config = json.loads((folder / "config.json").read_text())["config"]
        start = Path((config["init"] or {}).get("ref", "random")).name
        rows = read_rows(folder / "metrics.jsonl")
        losses.setdefault((start, config["optim"]["lr"]), []).append(
            np.array([(row["step"], row["loss"]) for row in rows])
        )
    for (start, lr), several in losses.items():
        mean = np.mean(several, axis=0)
        axes["one"].plot(*mean.T, label=f"{start}, {lr:g}", color=COLOURS[start], linestyle="-" if lr > 2e-3 else ":")
    axes["one"].set(title="1 % of the labels: cross-entropy", xlabel="step")
    axes["one"].legend(fontsize=7)
    figure.savefig(out, dpi=110)


def save(rows: dict[str, np.ndarray], out: Path) -> None:
    """Write a picture with a row of images, or of maps, for each name."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(columns * 0.9, len(rows) * 0.95), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) == 3 and Path(sys.argv[1]).is_dir():
        draw_curves(Path(sys.argv[1]), Path(sys.argv[2]))
    elif len(sys.argv) == 3:
        draw_attention(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        draw(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
