"""Models of ours as the .npz files of Google's repositories."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.layers.posemb import sincos2d
from vit_jax.pretrained.folder import check_new
from vit_jax.pretrained.google_layouts import to_original
from vit_jax.pretrained.google_links import links
from vit_jax.pretrained.links import Flat, to_theirs
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.specs import complete, pair, pixels_per_patch, prefix_tokens
from vit_jax.types import UserError

FORMAT = "a Google .npz"
# What the code of these models fixes and their files do not say: flax's nn.gelu and epsilons, and models_resnet.py.
CODE: dict[str, Any] = {"mlp": "gelu_tanh", "norm_eps": 1e-6}
STEM_CODE: dict[str, Any] = {"norm_eps": 1e-6, "weight_norm": "std", "weight_eps": 1e-5}
# Fields of which the files know one value, and that timm has.
_ONLY: dict[str, Any] = {
    **{"registers": 0, "distilled": False, "layer_scale": None, "qk_norm": False, "qkv_bias": True, "embed_bias": True},
    **{"pre_norm": False, "norm_after_pool": False},
}


def write(
    path: Path,
    model: Mapping[str, Any],
    params: Flat,
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> list[str]:
    """Writes a new .npz in the original's layout, or in big_vision's where the model pools by attention.

    Position embeddings become the learned table that gives the same numbers. Returns what the file cannot say, a sentence
    each; raises UserError, before writing, for a model that the format does not have.
    """
    full = complete(model, FORMAT)
    _check(full)
    check_new(path)
    notes = _untold(full, preprocessing, class_names)
    if full["type"] == "vit.ViT":
        params = _with_table(full, params, preprocessing)
        full |= {"posemb": "learn"}
    arrays = to_theirs(links(full), params)
    is_map = full.get("pool") == "map"
    _save(path, {f"params/{name}": array for name, array in arrays.items()} if is_map else to_original(arrays))
    return notes


def _check(model: Mapping[str, Any]) -> None:
    def refuse(field: str, only: str, alternative: str = "--to=timm may keep it") -> None:
        raise UserError(
            f"model.{field}={model[field]!r} cannot be written to {FORMAT}: its readers know {only}; {alternative}."
        )

    if model["mlp"] == "swiglu":
        refuse("mlp", "GELU")
    if model["type"] == "mixer.Mixer":
        return
    for field, only in _ONLY.items():
        if model[field] != only:
            refuse(field, f"{field}={only!r}")
    if model["class_token"] != (model["pool"] == "tok"):
        refuse("class_token", "one where pool='tok'")
    if model["stem"] and model["pool"] == "map":
        refuse("stem", "pool='tok' and pool='gap' with it")
    nowhere = "--to=workdir keeps it"
    if model["stride"] is not None and pair(model["stride"]) != pair(model["patch_size"]):
        refuse("stride", "patches side by side", nowhere)
    if model["padding"] != "valid":
        refuse("padding", "'valid'", nowhere)
    if model["posemb"] not in ("learn", "sincos2d", "none"):
        refuse("posemb", "a table of embeddings that are added", nowhere)


def _untold(
    model: Mapping[str, Any], preprocessing: Preprocessing | None, class_names: tuple[str, ...] | None
) -> list[str]:
    """What a reader of the file must be told besides."""
    notes = [
        f"Its readers take {field}={value!r}; this model has {field}={model[field]!r}, so set theirs to it."
        for field, value in CODE.items()
        if model[field] != value
    ]
    stem = model.get("stem") or STEM_CODE
    notes += [
        f"Its readers take {field}={value!r} in the ResNet; this model has {stem[field]!r}, so set theirs to it."
        for field, value in STEM_CODE.items()
        if stem[field] != value
    ]
    if model.get("pool") == "map":
        notes.append("Pooling by attention is in big_vision's layout, which the original repository does not read.")
    if model.get("posemb") in ("sincos2d", "none"):
        notes.append(f"Its position embeddings, posemb={model['posemb']!r}, are written as a table.")
    if preprocessing:
        notes.append(
            f"It does not say how images are prepared: {preprocessing.spec}, mean={preprocessing.mean} and "
            f"std={preprocessing.std}."
        )
        if preprocessing.size[0] != preprocessing.size[1]:
            notes.append(f"Its readers take images to be square; this model is for {preprocessing.size}.")
    if class_names:
        notes.append(f"It does not name its {len(class_names)} classes.")
    return notes


def _with_table(model: Mapping[str, Any], params: Flat, preprocessing: Preprocessing | None) -> Flat:
    """The parameters with a table for all tokens, which is what the original adds; big_vision's has no class token."""
    prefix = prefix_tokens(model)
    if model["posemb"] == "learn":
        table = params["posemb/table"]
        prefix = 0 if model["posemb_prefix"] else prefix
    elif preprocessing is None:
        raise UserError(
            f"model.posemb={model['posemb']!r} is written as a table, for which the size of the images must be known; evaluate "
            'with a preprocess such as "resize(224)".'
        )
    else:
        rows, cols = (a // b for a, b in zip(preprocessing.size, pixels_per_patch(model), strict=True))
        table = sincos2d(rows, cols, model["width"])[None]
        if model["posemb"] == "none":
            table = np.zeros_like(table)
    return dict(params) | {"posemb/table": np.pad(table, ((0, 0), (prefix, 0), (0, 0)))}


def _save(path: Path, arrays: Flat) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: np.asarray(a, np.float32) for name, a in arrays.items()})
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
