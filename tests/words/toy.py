"""Coloured shapes with captions, as files; towers that compile in seconds."""

import json

import numpy as np
from PIL import Image

from vit_jax.data import tokenizers

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
SHAPES = {"square": (7, 7), "bar": (3, 12), "column": (12, 3)}


def write_pairs(folder, each=4):
    """Write images and pairs.jsonl, two captions for each image; return the table."""
    rng, rows = np.random.default_rng(0), []
    for colour, value in COLOURS.items():
        for shape, (h, w) in SHAPES.items():
            for k in range(each):
                pixels = rng.integers(0, 40, (16, 16, 3)).astype(np.uint8)
                y, x = rng.integers(0, 17 - h), rng.integers(0, 17 - w)
                pixels[y : y + h, x : x + w] = value
                name = f"{colour}_{shape}_{k}.png"
                Image.fromarray(pixels).save(folder / name)
                rows.append({"image": name, "text": [f"a {colour} {shape}", f"{shape} of {colour}"]})
    table = folder / "pairs.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    return table


def write_tokenizer(folder, size=290):
    """Train a tokenizer on the captions; return its file."""
    texts = [f"a {colour} {shape} of" for colour in COLOURS for shape in SHAPES]
    file = folder / "tok.json"
    file.write_text(tokenizers.train(texts, size).packed())
    return file


IMAGE_TOWER = {
    "type": "vit.ViT",
    "width": 16,
    "depth": 1,
    "mlp_dim": 32,
    "num_heads": 2,
    "patch_size": 4,
    "pool": "map",
}
TEXT_TOWER = {"type": "text.TextTransformer", "width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "out_dim": 16}


def config(folder, task="siglip.Siglip", **fields):
    """Return a config that trains on the pairs in a folder in seconds."""
    from tests.conftest import ROOT
    from vit_jax.config import load

    made = load.load(str(ROOT / "configs" / "digits.py"))
    source = {"type": "pairs.Pairs", "path": str(folder / "pairs.jsonl")}
    spec = f"tokenize({str(folder / 'tok.json')!r}, 8"
    made.model, made.task = dict(IMAGE_TOWER), {"type": task, "text": dict(TEXT_TOWER), **fields}
    made.data.source, made.data.preprocess, made.batch_size, made.steps = source, f"{spec})", 8, 4
    made.optim.schedule = {"type": "constant", "warmup_steps": 2.0}  # a run that can be extended
    made.log.every, made.checkpoint.every = 1, 2
    test = {"type": "retrieval.Retrieval", "source": source, "preprocess": f"{spec}, 2)", "batch_size": 16}
    made.evals = {"test": test}
    return made
