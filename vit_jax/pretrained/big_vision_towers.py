"""Convert big_vision's two towers in one .npz (proj/image_text/two_towers.py): SigLIP, and LiT with a transformer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.pretrained import google, specs
from vit_jax.pretrained.links import Link, same, shape_of, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new
from vit_jax.types import UserError

_BLOCK = re.compile(r"txt/Encoder_0/encoderblock_(\d+)/")


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the file has an image tower, a text transformer and a temperature."""
    names = {name.removeprefix("params/") for name in arrays}
    return "t" in names and any(map(_BLOCK.match, names)) and any(name.startswith("img/") for name in names)


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a two-tower .npz; raises UserError for towers of another kind."""
    arrays = {name.removeprefix("params/"): array for name, array in arrays.items()}
    images = google.to_big_vision(
        {name.removeprefix("img/"): x for name, x in arrays.items() if name.startswith("img/")}
    )
    head = {name: images.pop(name) for name in ("head/kernel", "head/bias") if name in images}
    found = google.read({f"params/img/{name}": x for name, x in images.items()}, {}, origin)
    width, depth = arrays["txt/pos_embedding"].shape[-1], max(int(m[1]) for n in arrays if (m := _BLOCK.match(n))) + 1
    first = "txt/Encoder_0/encoderblock_0/"
    tower: dict[str, Any] = {
        "type": "text.TextTransformer",
        "vocab_size": shape_of(arrays, "txt/Embed_0/embedding", 2, origin)[0],
        "length": shape_of(arrays, "txt/pos_embedding", 3, origin)[1],
        "width": width,
        "depth": depth,
        "mlp_dim": shape_of(arrays, f"{first}MlpBlock_0/Dense_0/kernel", 2, origin)[1],
        "num_heads": shape_of(arrays, f"{first}MultiHeadDotProductAttention_0/query/kernel", 3, origin)[1],
        "pool": "map" if "txt/MAPHead_0/probe" in arrays else "last",
    }
    if "txt/head/kernel" in arrays:
        tower["out_dim"] = shape_of(arrays, "txt/head/kernel", 2, origin)[1]
    task: dict[str, Any] = {"type": "siglip.Siglip" if "b" in arrays else "clip.Clip", "text": tower}
    if head:
        task |= {"projection": head["head/kernel"].shape[1], "projection_bias": "head/bias" in head}
    texts = {name: x for name, x in arrays.items() if not name.startswith("img/")}
    table = links(tower, "b" in arrays)
    params = to_ours(table, texts, origin) | {f"backbone/{name}": x for name, x in found.params.items()}
    params |= {f"projection/{name.removeprefix('head/')}": x for name, x in head.items()}
    params |= {name: params[name].reshape(()) for name in ("log_scale", "bias") if name in params}
    scale = {"mean": found.preprocessing.mean, "std": found.preprocessing.std}
    notes = tuple(note for note in found.notes if not note.startswith("Not loaded"))
    return Pretrained(found.model, params, found.preprocessing, None, origin, notes=notes, task=task | scale)


def links(tower: Mapping[str, Any], has_bias: bool) -> list[Link]:
    """Return the name table of everything except the image tower and its projection."""
    table = [
        same("txt/Embed_0/embedding", "text/embed/embedding"),
        same("txt/pos_embedding", "text/posemb"),
        same("t", "log_scale"),
    ]
    table += [same("b", "bias")] if has_bias else []
    for i in range(tower["depth"]):
        table += google.block_links(f"txt/Encoder_0/encoderblock_{i}", f"text/encoder/block_{i}")
    table += google.norm_links("txt/Encoder_0/encoder_norm", "text/encoder/norm")
    if tower["pool"] == "map":
        table += google.pool_links("txt/MAPHead_0", "text/pool")
    if tower.get("out_dim"):
        table += [same(f"txt/head/{part}", f"text/head/{part}") for part in ("kernel", "bias")]
    return table


def write(
    path: Path, model: Mapping[str, Any], task: Mapping[str, Any], params: FlatParams, images: Preprocessing
) -> list[str]:
    """Write a .npz that big_vision's two_towers.load reads; return notes. Raises UserError for an unsupported pair."""
    check_new(path)
    tower = {"pool": "last", **{key: value for key, value in task["text"].items() if value is not None}}
    full = specs.complete(model, google.FORMAT)
    google.check(full)
    if tower.get("causal") or tower["pool"] == "eos" or not tower.get("out_bias", True):
        raise UserError("big_vision's text tower is bidirectional and has a head with a bias; try --to=hf for CLIP's.")
    table = [
        Link(f"img/{x.theirs}", tuple(f"backbone/{o}" for o in x.ours), x.pattern, x.sizes) for x in google.links(full)
    ]
    table += [same(f"img/head/{n.partition('/')[2]}", n) for n in params if n.startswith("projection/")]
    table += links(tower, "bias" in params)
    arrays = to_theirs(table, params)
    arrays |= {name: arrays[name].reshape(1) for name in ("t", "b") if name in arrays}
    google.save(path, {f"params/{name}": array for name, array in arrays.items()})
    return [f"The file does not describe the preprocessing: {images.spec}, mean={images.mean} and std={images.std}."]
