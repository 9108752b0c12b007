"""Convert transformers' ViTMAEForPreTraining, an encoder with its decoder: read, write and name its arrays."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.layers.posemb import sincos2d
from vit_jax.pretrained import huggingface, processor, specs
from vit_jax.pretrained.huggingface_names import NETWORKS, block_links, on_disk
from vit_jax.pretrained.links import Link, dense, norm, same, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new, config_value, write_folder
from vit_jax.types import Sincos, UserError

_POSITIONS = "decoder_pos_embed"
# Fields of the task and of a config.json, with transformers' defaults.
_FIELDS = {
    "decoder_width": ("decoder_hidden_size", 512),
    "decoder_depth": ("decoder_num_hidden_layers", 8),
    "decoder_heads": ("decoder_num_attention_heads", 16),
}


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the config describes an MAE, and the arrays have its decoder."""
    return config.get("model_type") == "vit_mae" and any(name.startswith("decoder.") for name in arrays)


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a state dict of ViTMAEForPreTraining; raises UserError for a decoder that `mae.Mae` cannot represent.

    A decoder with other positions than the paper's is left out, with a note.
    """
    encoder = {name: x for name, x in arrays.items() if not name.startswith("decoder.")}
    decoder = {name.removeprefix("decoder."): x for name, x in arrays.items() if name.startswith("decoder.")}
    # As transformers 5 writes them.
    decoder = {name.replace("decoder_encoder.layer.", "decoder_layers."): x for name, x in decoder.items()}
    found = huggingface.read(encoder, config, origin)
    sizes = {ours: config_value(config, theirs, int, default, origin) for ours, (theirs, default) in _FIELDS.items()}
    width = sizes["decoder_width"]
    if config_value(config, "decoder_intermediate_size", int, 2048, origin) != 4 * width:
        raise UserError(
            f"{origin} has decoder_intermediate_size={config.get('decoder_intermediate_size')}; expected four times the "
            f"decoder's width of {width}."
        )
    fixed = _positions(found.model, found.preprocessing.size, width, "sincos2d_mae")
    positions = decoder.pop(_POSITIONS, fixed)
    if positions.shape != fixed.shape or not np.allclose(positions, fixed, atol=1e-4):
        note = "Its decoder has other positions than MAE's fixed ones, so it is left out."
        return dataclasses.replace(found, notes=(*found.notes, note))
    theirs = on_disk(decoder, "vit_mae")
    params = to_ours(_links(sizes, found.model), theirs, origin)
    task = {
        "type": "mae.Mae", **sizes, "decoder_posemb": "sincos2d_mae",
        "mask_ratio": config_value(config, "mask_ratio", float, 0.75, origin),
        "norm_pixels": config_value(config, "norm_pix_loss", bool, False, origin),
    }  # fmt: skip
    whole = {f"backbone/{name}": x for name, x in found.params.items()}
    whole |= {f"decoder/{name}": x for name, x in params.items()}
    return Pretrained(
        found.model, whole, found.preprocessing, None, origin, found.posemb, found.patches, found.notes, task
    )


def write(
    folder: Path,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    params: FlatParams,
    preprocessing: Preprocessing,
    class_names: tuple[str, ...],
) -> list[str]:
    """Write a folder that transformers' ViTMAEForPreTraining loads; return notes.

    params: of the task. Raises UserError if the network is not a plain ViT.
    """
    check_new(folder)
    inner = {name.removeprefix("backbone/"): x for name, x in params.items() if name.startswith("backbone/")}
    decoder = {name.removeprefix("decoder/"): x for name, x in params.items() if name.startswith("decoder/")}
    model = specs.complete(model, "transformers")
    model, inner = specs.with_posemb_table(model, inner, preprocessing.size)
    encoder, config, notes = huggingface.as_vit(model, inner, preprocessing.size)
    sizes = {ours: task.get(ours, default) for ours, (_, default) in _FIELDS.items()}
    width = sizes["decoder_width"]
    arrays = {f"vit.{name}": x for name, x in encoder.items()}
    arrays |= {f"decoder.{name}": x for name, x in to_theirs(_links(sizes, model), decoder).items()}
    kind = task.get("decoder_posemb", "sincos2d")
    arrays[f"decoder.{_POSITIONS}"] = _positions(model, preprocessing.size, width, kind)
    if kind != "sincos2d_mae":
        notes.append(f"Its decoder's positions are those of {kind!r}: transformers reads them; this library does not.")
    config |= {
        "architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae", "decoder_intermediate_size": 4 * width,
        **{theirs: sizes[ours] for ours, (theirs, _) in _FIELDS.items()},
        "mask_ratio": task.get("mask_ratio", 0.75), "norm_pix_loss": task.get("norm_pixels", True),
    }  # fmt: skip
    described, more = processor.make_config(preprocessing)
    write_folder(folder, arrays, {"config.json": config, "preprocessor_config.json": described})
    return notes + more


def _positions(model: Mapping[str, Any], size: tuple[int, int], width: int, kind: Sincos) -> np.ndarray:
    """Return the fixed positions of the decoder for images of size (height, width), with a zero for the class token."""
    return np.pad(sincos2d(*specs.grid_of(model, size), width, kind=kind), ((1, 0), (0, 0)))[None]


def _links(sizes: Mapping[str, int], model: Mapping[str, Any]) -> list[Link]:
    """Return the name table of the decoder."""
    shape = dict(model) | {"num_heads": sizes["decoder_heads"]}
    table = [
        *dense("decoder_embed", "embed"),
        same("mask_token", "mask_token"),
        *norm("decoder_norm", "encoder/norm"),
        *dense("decoder_pred", "pixels"),
    ]
    for i in range(sizes["decoder_depth"]):
        table += block_links(NETWORKS["vit_mae"], f"decoder_layers.{i}", f"encoder/block_{i}", shape)
    return table
