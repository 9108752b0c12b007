"""Convert open_clip's CLIP models: open_clip_model.safetensors with open_clip_config.json, or a matching state dict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.config.hints import fits
from vit_jax.pretrained import specs
from vit_jax.pretrained.links import Link, conv, dense, from_heads, norm, same, shape_of, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new, write_folder
from vit_jax.types import UserError

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# open_clip's constants (open_clip/constants.py).
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the arrays have the names of a CLIP with open_clip's own towers."""
    return "visual.conv1.weight" in arrays and "token_embedding.weight" in arrays


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert a state dict; the config, if there is one, states heads, activation and preprocessing."""
    arrays = {
        name: x
        for name, x in arrays.items()
        if name not in ("attn_mask", "input_resolution", "context_length", "vocab_size")
    }
    stated = config.get("model_cfg", config)
    vision, text = ((stated.get(f"{key}_cfg") or {}) if isinstance(stated, dict) else {} for key in ("vision", "text"))
    is_quick = stated.get("quick_gelu", not config) if isinstance(stated, dict) else True
    if not fits(vision, dict) or not fits(text, dict) or not fits(is_quick, bool):
        raise UserError(f"{origin}: its {CONFIG} has other kinds of values than open_clip's; restore it.")
    width, _, patch, _ = shape_of(arrays, "visual.conv1.weight", 4, origin)
    shared = {"mlp": "quick_gelu" if is_quick else "gelu", "norm_eps": 1e-5}

    def sizes(prefix: str, width: int, head_width: Any) -> dict[str, Any]:
        if not fits(head_width, int) or head_width < 1 or width % head_width:
            raise UserError(f"{origin} has a width of {width}, which heads of {head_width} do not divide.")
        before = f"{prefix}transformer.resblocks."
        depth = max((int(n.removeprefix(before).split(".")[0]) + 1 for n in arrays if n.startswith(before)), default=0)
        mlp_dim = shape_of(arrays, f"{before}0.mlp.c_fc.weight", 2, origin)[0]
        return {"width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": width // head_width, **shared}

    model = specs.complete(
        {
            "type": "vit.ViT", "num_classes": 0, **sizes("visual.", width, vision.get("head_width", 64)), "patch_size": patch,
            "pool": "tok", "pre_norm": True, "embed_bias": False,
        },
        "vit_jax",
    )  # fmt: skip
    vocab_size, text_width = shape_of(arrays, "token_embedding.weight", 2, origin)
    heads = text.get("heads", max(text_width // 64, 1))
    tower = {
        "type": "text.TextTransformer", **sizes("", text_width, text_width // heads if fits(heads, int) and heads > 0 else 0),
        "vocab_size": vocab_size, "length": shape_of(arrays, "positional_embedding", 2, origin)[0],
        "out_dim": shape_of(arrays, "text_projection", 2, origin)[1], "out_bias": False, "causal": True, "pool": "eos",
        "eos": vocab_size - 1,
    }  # fmt: skip
    params = to_ours(links(model, tower), arrays, origin)
    params["log_scale"] = params["log_scale"].reshape(())
    side = specs.square_side(shape_of(arrays, "visual.positional_embedding", 2, origin)[0] - 1)
    if side is None:
        raise UserError(f"{origin} has positions for no square of patches.")
    size = (side * patch, side * patch)
    images = Preprocessing(size, size[0], "bicubic", _MEAN, _STD, True, "torchvision")
    out = shape_of(arrays, "visual.proj", 2, origin)[1]
    task = {"type": "clip.Clip", "text": tower, "projection": out, "mean": images.mean, "std": images.std}
    notes = (
        ()
        if config
        else ("It has no open_clip_config.json: assumed quick_gelu, heads of 64 and OpenAI's preprocessing.",)
    )
    return Pretrained(model, params, images, None, origin, notes=notes, task=task)


def links(model: Mapping[str, Any], tower: Mapping[str, Any]) -> list[Link]:
    """Return the name table of a pair."""
    table = [
        conv("visual.conv1.weight", "backbone/embed/kernel"),
        Link("visual.class_embedding", ("backbone/cls",), "(n d) -> n 1 1 d"),
        Link("visual.positional_embedding", ("backbone/posemb/table",), "(n p) d -> n 1 p d"),
        Link("visual.proj", ("projection/kernel",), "(n d) e -> n d e"),
        same("token_embedding.weight", "text/embed/embedding"),
        Link("positional_embedding", ("text/posemb",), "(n p) d -> n 1 p d"),
        Link("text_projection", ("text/head/kernel",), "(n d) e -> n d e"),
        same("logit_scale", "log_scale"),
    ]
    table += norm("visual.ln_pre", "backbone/pre_norm") + norm("visual.ln_post", "backbone/encoder/norm")
    table += norm("ln_final", "text/encoder/norm")
    for prefix, ours, fields in (("visual.", "backbone", model), ("", "text", tower)):
        for i in range(fields["depth"]):
            their, our = f"{prefix}transformer.resblocks.{i}", f"{ours}/encoder/block_{i}"
            three, k = [f"{our}/attn/{name}" for name in ("query", "key", "value")], {"k": fields["num_heads"]}
            kernels, biases = (tuple(f"{name}/{part}" for name in three) for part in ("kernel", "bias"))
            table += [
                Link(f"{their}.attn.in_proj_weight", kernels, "(n k h) d -> n d k h", k),
                Link(f"{their}.attn.in_proj_bias", biases, "(n k h) -> n k h", k),
            ]
            table += from_heads(f"{their}.attn.out_proj", f"{our}/attn/out", fields["num_heads"])
            table += norm(f"{their}.ln_1", f"{our}/norm1") + norm(f"{their}.ln_2", f"{our}/norm2")
            table += dense(f"{their}.mlp.c_fc", f"{our}/mlp/up") + dense(f"{their}.mlp.c_proj", f"{our}/mlp/down")
    return table


def write(
    folder: Path, model: Mapping[str, Any], task: Mapping[str, Any], params: FlatParams, images: Preprocessing
) -> list[str]:
    """Write open_clip_config.json and the weights into a new folder that open_clip loads as local-dir:; return notes.

    Raises UserError if the towers do not have CLIP's architecture.
    """
    check_new(folder)
    model, tower = specs.complete(model, "open_clip"), dict(task["text"])
    table = links(model, tower)
    is_clip = {name for link in table for name in link.ours} == set(params)
    is_clip &= model["pre_norm"] and model["pool"] == "tok" and tower.get("pool") == "eos" and bool(tower.get("causal"))
    if not is_clip or model["mlp"] not in ("gelu", "quick_gelu") or model["norm_eps"] != 1e-5:
        raise UserError(
            "This pair is not a CLIP architecture, so open_clip cannot load it; use --to=hf or --to=workdir."
        )
    arrays = to_theirs(table, params)
    arrays["logit_scale"] = arrays["logit_scale"].reshape(())
    vision = {"image_size": images.size[0], "layers": model["depth"], "width": model["width"]}
    vision |= {"patch_size": specs.pair(model["patch_size"])[0], "head_width": model["width"] // model["num_heads"]}
    vision["mlp_ratio"] = model["mlp_dim"] / model["width"]
    text = {"context_length": tower["length"], "vocab_size": tower["vocab_size"], "width": tower["width"]}
    text |= {"heads": tower["num_heads"], "layers": tower["depth"], "mlp_ratio": tower["mlp_dim"] / tower["width"]}
    config = {
        "embed_dim": tower["out_dim"],
        "quick_gelu": model["mlp"] == "quick_gelu",
        "vision_cfg": vision,
        "text_cfg": text,
    }
    preprocess = {
        "mean": list(images.mean),
        "std": list(images.std),
        "interpolation": images.method,
        "resize_mode": "shortest",
    }
    write_folder(folder, arrays, {CONFIG: {"model_cfg": config, "preprocess_cfg": preprocess}}, WEIGHTS)
    return ["open_clip tokenizes by CLIP's vocabulary; another tokenizer must be given to it."]
