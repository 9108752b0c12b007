"""Convert transformers' pairs of towers: CLIPModel, SiglipModel (and fixed-size SigLIP 2), Siglip2Model (NaFlex)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.pretrained import processor, specs
from vit_jax.pretrained.links import Link, conv, dense, from_heads, norm, same, shape_of, to_heads, to_ours, to_theirs
from vit_jax.pretrained.pretrained import FlatParams, Preprocessing, Pretrained
from vit_jax.pretrained.tensors import check_new, config_value, write_folder
from vit_jax.types import UserError

KINDS = ("clip", "siglip", "siglip2")
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_POSITIONS = "{}_model.embeddings.position_embedding.weight"


def matches(arrays: FlatParams, config: Mapping[str, Any]) -> bool:
    """Return whether the config describes a pair of towers."""
    return config.get("model_type") in KINDS


def read(arrays: FlatParams, config: Mapping[str, Any], origin: str) -> Pretrained:
    """Convert the state dict of a pair, with its config.json and, under "preprocessor", its processor's.

    Raises UserError for other networks, such as a tower without its pooling head.
    """
    kind = config_value(config, "model_type", str, "", origin)
    # Files of older versions also contain the position ids.
    arrays = {name: x for name, x in arrays.items() if not name.endswith("position_ids")}
    vision, text = (config_value(config, f"{key}_config", dict, {}, origin) for key in ("vision", "text"))
    model, tower = _image_tower(kind, arrays, vision, origin), _text_tower(kind, arrays, text, origin)
    task: dict[str, Any] = {"type": "clip.Clip" if kind == "clip" else "siglip.Siglip", "text": tower}
    if kind == "clip":
        task["projection"] = shape_of(arrays, "visual_projection.weight", 2, origin)[0]
    params = to_ours(links(kind, model, tower), arrays, origin)
    params |= {name: params[name].reshape(()) for name in ("log_scale", "bias") if name in params}
    size = _image_size(kind, arrays, model, vision, origin)
    stated = config_value(config, "preprocessor", dict, {}, origin)
    notes = []
    if kind == "siglip2":
        images = Preprocessing(size, size, "bilinear", (0.5,) * 3, (0.5,) * 3)
        notes = [
            f"Its processor keeps the aspect ratio; here images in use are resized to {size}. See fit and patchify."
        ]
    else:
        if kind == "clip" and not stated:
            stated = {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": size[0]},
                "crop_size": size[0],
            }
        channels = params["backbone/embed/kernel"].shape[2]
        images, notes = processor.read_preprocessing(stated, size, channels, kind, origin)
    task |= {"mean": images.mean, "std": images.std}
    return Pretrained(model, params, images, None, origin, notes=tuple(notes), task=task)


def _shared(kind: str, arrays: FlatParams, stated: Mapping[str, Any], side: str, origin: str) -> dict[str, Any]:
    """Return the fields that both towers have."""
    width = shape_of(arrays, _POSITIONS.format(side), 2, origin)[1]
    act = config_value(stated, "hidden_act", str, "quick_gelu" if kind == "clip" else "gelu_pytorch_tanh", origin)
    if act not in _ACTIVATIONS:
        raise UserError(f"{origin} has hidden_act={act!r}; expected one of {', '.join(_ACTIVATIONS)}.")
    heads = config_value(
        stated, "num_attention_heads", int, {"vision": 12, "text": 8 if kind == "clip" else 12}[side], origin
    )
    if heads < 1 or width % heads:
        raise UserError(f"{origin} has a width of {width}, which is not divisible by num_attention_heads={heads}.")
    before = f"{side}_model.encoder.layers."
    depth = max(
        (int(name.removeprefix(before).split(".")[0]) + 1 for name in arrays if name.startswith(before)), default=0
    )
    return {
        "width": width,
        "depth": depth,
        "mlp_dim": shape_of(arrays, f"{before}0.mlp.fc1.weight", 2, origin)[0],
        "num_heads": heads,
        "mlp": _ACTIVATIONS[act],
        "norm_eps": config_value(stated, "layer_norm_eps", float, 1e-5 if kind == "clip" else 1e-6, origin),
    }


def _image_tower(kind: str, arrays: FlatParams, stated: Mapping[str, Any], origin: str) -> dict[str, Any]:
    model = {"type": "vit.ViT", "num_classes": 0, **_shared(kind, arrays, stated, "vision", origin)}
    if kind == "siglip2":
        pixels, patches = (
            shape_of(arrays, n, 2, origin)[i] for n, i in ((_PATCHES, 1), (_POSITIONS.format("vision"), 0))
        )
        channels = config_value(stated, "num_channels", int, 3, origin)
        side, patch = specs.square_side(patches), math.isqrt(pixels // max(channels, 1))
        if side is None or patch * patch * channels != pixels:
            raise UserError(
                f"{origin} has {patches} positions and patches of {pixels} numbers; expected squares of each."
            )
        model |= {"patch_size": patch, "posemb_grid": (side, side)}
    else:
        model["patch_size"] = specs.int_or_pair(*shape_of(arrays, _PATCHES, 4, origin)[2:])
    own = {"pool": "tok", "pre_norm": True, "embed_bias": False} if kind == "clip" else {"pool": "map"}
    return specs.complete(model | own, "vit_jax")


def _text_tower(kind: str, arrays: FlatParams, stated: Mapping[str, Any], origin: str) -> dict[str, Any]:
    vocab_size = shape_of(arrays, "text_model.embeddings.token_embedding.weight", 2, origin)[0]
    tower = {"type": "text.TextTransformer", **_shared(kind, arrays, stated, "text", origin), "vocab_size": vocab_size}
    tower["length"] = shape_of(arrays, _POSITIONS.format("text"), 2, origin)[0]
    if kind != "clip":
        return tower | {"pool": "last", "out_dim": shape_of(arrays, "text_model.head.weight", 2, origin)[0]}
    end = config_value(stated, "eos_token_id", int, 49407, origin)
    # In the first published configs it is 2, and transformers then reads the token with the highest id, the end.
    tower["eos"] = vocab_size - 1 if end == 2 else end
    return tower | {
        "pool": "eos",
        "causal": True,
        "out_dim": shape_of(arrays, "text_projection.weight", 2, origin)[0],
        "out_bias": False,
    }


def _image_size(
    kind: str, arrays: FlatParams, model: Mapping[str, Any], stated: Mapping[str, Any], origin: str
) -> tuple[int, int]:
    patches = shape_of(arrays, _POSITIONS.format("vision"), 2, origin)[0] - (kind == "clip")
    side = specs.square_side(patches)
    if side is None:
        raise UserError(f"{origin} has positions for {patches} patches; expected a square.")
    height, width = specs.pixels_per_patch(model)
    return side * height, side * width


def links(kind: str, model: Mapping[str, Any], tower: Mapping[str, Any]) -> list[Link]:
    """Return the name table of a pair."""
    vision, embeddings = "vision_model", "vision_model.embeddings"
    table = [Link(f"{embeddings}.position_embedding.weight", ("backbone/posemb/table",), "(n p) d -> n 1 p d")]
    if kind == "siglip2":
        p, q = specs.pair(model["patch_size"])
        table.append(Link(_PATCHES, ("backbone/embed/kernel",), "(n d) (p q c) -> n p q c d", {"p": p, "q": q}))
    else:
        table.append(conv(_PATCHES, "backbone/embed/kernel"))
    table += norm(f"{vision}.post_layernorm", "backbone/encoder/norm")
    table += _blocks(vision, "backbone/encoder", model) + _blocks("text_model", "text/encoder", tower)
    table.append(same("text_model.embeddings.token_embedding.weight", "text/embed/embedding"))
    table.append(Link(_POSITIONS.format("text"), ("text/posemb",), "(n p) d -> n 1 p d"))
    table += [*norm("text_model.final_layer_norm", "text/encoder/norm"), same("logit_scale", "log_scale")]
    if kind == "clip":
        table.append(Link(f"{embeddings}.class_embedding", ("backbone/cls",), "(n d) -> n 1 1 d"))
        table += norm(f"{vision}.pre_layrnorm", "backbone/pre_norm")
        return table + dense("visual_projection", "projection")[:1] + dense("text_projection", "text/head")[:1]
    table += [same(f"{embeddings}.patch_embedding.bias", "backbone/embed/bias"), same("logit_bias", "bias")]
    table += dense("text_model.head", "text/head")
    head, pool = f"{vision}.head", "backbone/pool"
    three, sizes = [f"{pool}/attn/{name}" for name in ("query", "key", "value")], {"k": model["num_heads"]}
    kernels, biases = (tuple(f"{name}/{part}" for name in three) for part in ("kernel", "bias"))
    table += [
        same(f"{head}.probe", f"{pool}/probe"),
        Link(f"{head}.attention.in_proj_weight", kernels, "(n k h) d -> n d k h", sizes),
        Link(f"{head}.attention.in_proj_bias", biases, "(n k h) -> n k h", sizes),
    ]
    table += from_heads(f"{head}.attention.out_proj", f"{pool}/attn/out", model["num_heads"])
    table += norm(f"{head}.layernorm", f"{pool}/norm")
    return table + dense(f"{head}.mlp.fc1", f"{pool}/mlp/up") + dense(f"{head}.mlp.fc2", f"{pool}/mlp/down")


def _blocks(theirs: str, ours: str, model: Mapping[str, Any]) -> list[Link]:
    table, heads = [], model["num_heads"]
    for i in range(model["depth"]):
        their, our = f"{theirs}.encoder.layers.{i}", f"{ours}/block_{i}"
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            table += to_heads(f"{their}.self_attn.{short}_proj", [f"{our}/attn/{name}"], heads)
        table += from_heads(f"{their}.self_attn.out_proj", f"{our}/attn/out", heads)
        table += norm(f"{their}.layer_norm1", f"{our}/norm1") + norm(f"{their}.layer_norm2", f"{our}/norm2")
        table += dense(f"{their}.mlp.fc1", f"{our}/mlp/up") + dense(f"{their}.mlp.fc2", f"{our}/mlp/down")
    return table


# Writing.


def write(
    folder: Path, model: Mapping[str, Any], task: Mapping[str, Any], params: FlatParams, images: Preprocessing
) -> list[str]:
    """Write config.json, preprocessor_config.json and model.safetensors of a pair into a new folder; return notes.

    task: the config of the pair, with its `text`. Raises UserError for a pair that transformers cannot represent.
    """
    check_new(folder)
    model, tower = specs.complete(model, "transformers"), dict(task["text"])
    kind = _kind(model, task, tower)
    table = links(kind, model, tower)
    known = {name for link in table for name in link.ours}
    if different := sorted(known ^ set(params)):
        raise UserError(
            f"transformers' {_CLASSES[kind]} cannot represent this pair of towers: {', '.join(different[:6])} differ from its "
            "arrays; use --to=workdir."
        )
    arrays = to_theirs(table, params)
    shape = () if kind == "clip" else (1,)
    arrays |= {name: arrays[name].reshape(shape) for name in ("logit_scale", "logit_bias") if name in arrays}
    configs = {"config.json": _config(kind, model, tower, images, params["backbone/embed/kernel"].shape[2])}
    notes = ["It has no tokenizer: copy the one it was trained with into its folder."]
    if kind == "siglip2":
        rows, columns = model["posemb_grid"]
        configs["preprocessor_config.json"] = {
            "image_processor_type": "Siglip2ImageProcessor", "patch_size": specs.pair(model["patch_size"])[0],
            "max_num_patches": rows * columns, "image_mean": list(images.mean), "image_std": list(images.std),
        }  # fmt: skip
    else:
        configs["preprocessor_config.json"], more = processor.make_config(images)
        notes += more
    write_folder(folder, arrays, configs)
    return notes


def _kind(model: Mapping[str, Any], task: Mapping[str, Any], tower: Mapping[str, Any]) -> str:
    """Return the transformers class for a pair; raises UserError naming the fields that no class supports."""
    kind = "clip" if tower.get("causal") else "siglip2" if model["posemb_grid"] is not None else "siglip"
    expected = {
        "clip": {"pool": "tok", "pre_norm": True, "embed_bias": False, "posemb_grid": None},
        "siglip": {"pool": "map", "pre_norm": False, "embed_bias": True},
    }["clip" if kind == "clip" else "siglip"]
    expected |= {
        "posemb": "learn",
        "stem": None,
        "rope": None,
        "registers": 0,
        "norm_after_pool": False,
        "rep_size": None,
    }
    wrong = {f"model.{key}": model[key] for key, value in expected.items() if model[key] != value}
    texts = {"pool": "eos" if kind == "clip" else "last", "out_bias": kind != "clip"}
    given = {"pool": "last", "out_bias": True} | {key: value for key, value in tower.items() if value is not None}
    wrong |= {f"task.text.{key}": given[key] for key, value in texts.items() if given[key] != value}
    wrong |= {"task.text.out_dim": None} if not tower.get("out_dim") else {}
    if bool(task.get("projection")) != (kind == "clip"):
        wrong["task.projection"] = task.get("projection")
    if wrong:
        fields = ", ".join(f"{key}={value!r}" for key, value in wrong.items())
        raise UserError(f"transformers' {_CLASSES[kind]} cannot represent {fields}; use --to=workdir.")
    return kind


def _config(
    kind: str, model: Mapping[str, Any], tower: Mapping[str, Any], images: Preprocessing, channels: int
) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}

    def shared(fields: Mapping[str, Any], default_eps: float) -> dict[str, Any]:
        return {
            "hidden_size": fields["width"],
            "intermediate_size": fields["mlp_dim"],
            "num_hidden_layers": fields["depth"],
            "num_attention_heads": fields["num_heads"],
            "hidden_act": names[fields.get("mlp") or "gelu_tanh"],
            "layer_norm_eps": fields.get("norm_eps") or default_eps,
        }

    text = shared(tower, 1e-6) | {"vocab_size": tower["vocab_size"], "max_position_embeddings": tower["length"]}
    vision = shared(model, 1e-6) | {"patch_size": specs.pair(model["patch_size"])[0], "num_channels": channels}
    if kind == "clip":
        out = {"projection_dim": tower["out_dim"]}
        text |= out | {"eos_token_id": tower["eos"], "bos_token_id": max(tower["eos"] - 1, 0)}
        vision |= out
    else:
        out = {}
        text |= {"projection_size": tower["out_dim"], "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    if kind == "siglip2":
        vision["num_patches"] = int(np.prod(model["posemb_grid"]))
    else:
        vision["image_size"] = images.size[0]
    return {
        "architectures": [_CLASSES[kind]], "model_type": kind, **out, "text_config": text, "vision_config": vision,
        "dtype": "float32",
    }  # fmt: skip
