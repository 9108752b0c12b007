"""The weights of timm's VisionTransformer, VisionTransformerDistilled, hybrids and MlpMixer, and of the original DeiT."""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained import specs, timm_config
from vit_jax.pretrained.links import Flat, to_ours
from vit_jax.pretrained.pretrained import Pretrained
from vit_jax.pretrained.timm_config import Facts
from vit_jax.pretrained.timm_export import write
from vit_jax.pretrained.timm_links import links
from vit_jax.pretrained.torch_links import shape_of
from vit_jax.types import UserError

__all__ = ["fits", "links", "read", "write"]

_VIT, _MIXER = "blocks.0.attn.qkv.weight", "blocks.0.mlp_tokens.fc1.weight"
# What other networks of timm are told by: a name that they alone have.
_OTHERS = {
    r"^layer1\.0\.conv1\.": "a ResNet",
    r"^layers\.\d+\.blocks\.\d+\.attn\.relative_position": "a Swin transformer",
    r"^stages\.\d+\.blocks\.\d+\.(conv_dw|gamma)": "a ConvNeXt",
    r"^conv_stem\.weight": "an EfficientNet or MobileNet",
    r"^blocks\.\d+\.attn\.(q_bias|relative_position|rel_pos|rope|q_proj|lambda_q1)": "a BEiT, EVA, SAM or differential ViT",
    r"^blocks\.\d+\.(attns|in_proj)\.": "a ViT of parallel layers",
    r"^blocks\.\d+\.(linear_tokens|mlp_channels\.gate)\.": "a ResMLP or gMLP",
    r"^patch_embed\.backbone\.(conv1|bn1|0)\.": "a hybrid of another network than BiT's ResNet",
    r"^(module\.)?visual\.": "a whole CLIP",
    r"^features\.\d": "a VGG or another network of features",
    r"^stages?\.\d|^stem\.\d": "a convolutional or hierarchical network",
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_POOLS = {"token": "tok", "avg": "gap", "map": "map"}


def fits(arrays: Flat, config: Mapping[str, Any]) -> bool:
    """Whether arrays are named as timm's, of whatever network, or the config names an architecture of timm."""
    patterns = [*_OTHERS, "^(timm_model.)?blocks.0.(attn.qkv|mlp_tokens.fc1).weight"]
    return isinstance(config.get("architecture"), str) or any(
        re.match(pattern, name) for pattern in patterns for name in arrays
    )


def read(arrays: Flat, config: Mapping[str, Any], origin: str) -> Pretrained:
    """The model in a state dict of timm and the config.json beside it, if any.

    The fields of the spec are seen in the arrays, else taken from the config, else from what timm's architecture of that name
    is, else assumed, with a note. Raises UserError for other networks, and for variants that ours cannot express.
    """
    arrays = {_rename(name): array for name, array in arrays.items()}
    facts = timm_config.facts(config, origin)
    _check_known(arrays, facts, origin)
    see = _Arrays(arrays, origin)
    model, notes = (_mixer if _MIXER in arrays else _vit)(see, facts)
    params = to_ours(links(specs.complete(model, "ours"), "blocks.0.mlp.fc1_g.weight" not in arrays), arrays, origin)
    size, more = _image_size(model, see, facts)
    first = "embed/kernel" if not model.get("stem") else "stem/root/kernel"
    preprocessing, inexact = timm_config.preprocessing(config, size, params[first].shape[2], origin)
    names = timm_config.class_names(config, model["num_classes"], origin)
    return Pretrained(model, params, preprocessing, names, origin, "bicubic", tuple(notes + more + inexact))


def _rename(name: str) -> str:
    """Names of transformers' wrapper and of the original DeiT III as timm's."""
    return re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name.removeprefix("timm_model."))


def _check_known(arrays: Flat, facts: Facts, origin: str) -> None:
    looks = next((kind for pattern, kind in _OTHERS.items() for name in arrays if re.match(pattern, name)), None)
    if re.search("_rope_|_dinov3|_pe_|_lingbot|_rpn_", facts.architecture or ""):  # their arrays are named as a ViT's
        looks = "a ViT of rotary positions or of norms after each layer"
    if looks or not {_VIT, _MIXER} & set(arrays):
        named = f" ({facts.architecture})" if facts.architecture else ""
        raise UserError(
            f"{origin} looks like {looks or 'another network'}{named}; of timm's networks only ViT, DeiT, hybrids of BiT's "
            "ResNet and ViT, and MLP-Mixer are understood."
        )


class _Arrays:
    """What is seen in the arrays of a model."""

    def __init__(self, arrays: Flat, origin: str):
        self.arrays, self.origin = arrays, origin

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        return shape_of(self.arrays, name, rank, self.origin)

    def depth(self) -> int:
        return 1 + max(int(match[1]) for name in self.arrays if (match := re.match(r"blocks\.(\d+)\.", name)))

    def classes(self) -> int:
        return self.shape("head.weight", 2)[0] if "head.weight" in self else 0


def _vit(see: _Arrays, facts: Facts) -> tuple[dict[str, Any], list[str]]:
    width, _, *patch = see.shape("patch_embed.proj.weight", 4)
    hidden = see.shape("blocks.0.mlp.fc2.weight", 2)[1]
    packed = "blocks.0.mlp.fc1.weight" in see and see.shape("blocks.0.mlp.fc1.weight", 2)[0] == 2 * hidden
    heads = _num_heads(width, see, facts)
    # Every CLIP of timm has 1e-5, and they alone have norm_pre.
    norm_eps = facts.norm_eps if facts.architecture or "norm_pre.weight" not in see else 1e-5
    mlp = _mlp("blocks.0.mlp.fc1_g.weight" in see or packed, facts, see)
    model = {
        "type": "vit.ViT",
        "num_classes": see.classes(),
        "width": width,
        "depth": see.depth(),
        "mlp_dim": hidden,
        "num_heads": heads,
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "stem": _stem(see),
        "pool": _pool(see, facts),
        "class_token": "cls_token" in see,
        "distilled": "dist_token" in see,
        "registers": see.shape("reg_token", 3)[1] if "reg_token" in see else 0,
        "posemb": "learn" if "pos_embed" in see else "none",
        "rep_size": see.shape("pre_logits.fc.bias", 1)[0] if "pre_logits.fc.bias" in see else None,
        "mlp": mlp,
        "norm_eps": norm_eps,
        "norm_after_pool": "fc_norm.weight" in see,
        "pre_norm": "norm_pre.weight" in see,
        "embed_bias": "patch_embed.proj.bias" in see,
        "qkv_bias": "blocks.0.attn.qkv.bias" in see,
        "qk_norm": "blocks.0.attn.q_norm.weight" in see,
        "layer_scale": facts.init_values or 1e-5 if "blocks.0.ls1.gamma" in see else None,
    }
    model["posemb_prefix"] = _has_prefix(model, see, facts)
    _check_vit(model, see, facts)
    notes = []
    if facts.tag == "openai" and mlp == "gelu":
        notes = ["OpenAI trained CLIP with mlp='quick_gelu', but timm's config of it says exact GELU, which is taken."]
    elif not facts.architecture:
        notes = [
            f"There is no config.json beside it: assumed num_heads={heads}, mlp={mlp!r}, norm_eps={norm_eps}, "
            f"pool={model['pool']!r} and no rotary positions."
        ]
    return model, notes


def _check_vit(model: Mapping[str, Any], see: _Arrays, facts: Facts) -> None:
    """Raises UserError for what is neither seen in arrays nor told by a config, or is otherwise than ours."""
    if model["posemb"] == "none" and facts.pos_embed not in ("", "none"):
        raise UserError(f"{see.origin} has no pos_embed; ViTs with rotary positions (DINOv3, ...) are not understood.")
    if model["pool"] == "tok" and not model["class_token"]:
        raise UserError(f"{see.origin} has no cls_token, but its config.json says global_pool='token'.")
    if model["pool"] == "map" and model["class_token"] and not facts.architecture:
        raise UserError(f"{see.origin} has a class token and pools by attention; its config.json must say how.")
    if model["pool"] == "map" and model["mlp"] == "swiglu":
        raise UserError(f"{see.origin} pools by attention in a SwiGLU network, whose pool has another MLP than ours.")


def _num_heads(width: int, see: _Arrays, facts: Facts) -> int:
    if "blocks.0.attn.q_norm.weight" in see:
        return width // see.shape("blocks.0.attn.q_norm.weight", 1)[0]
    heads = facts.num_heads or timm_config.HEADS.get(width) or max(width // 64, 1)
    if width % heads:
        raise UserError(
            f"{see.origin} has a width of {width}, which {heads} heads do not divide; its config.json must say num_heads."
        )
    return heads


def _mlp(is_gated: bool, facts: Facts, see: _Arrays) -> str:
    if is_gated and facts.act_layer in (None, "silu", "swish"):
        return "swiglu"
    if is_gated or facts.act_layer not in (None, *_ACTIVATIONS):
        raise UserError(
            f"{see.origin} has act_layer={facts.act_layer!r}{' in gated MLPs' if is_gated else ''}; understood are "
            f"{', '.join(_ACTIVATIONS)}, and silu in gated MLPs."
        )
    return _ACTIVATIONS[facts.act_layer or "gelu"]


def _pool(see: _Arrays, facts: Facts) -> str:
    seen = (
        "map" if "attn_pool.latent" in see else "avg" if "fc_norm.weight" in see or "cls_token" not in see else "token"
    )
    pool = facts.global_pool or seen
    if pool not in _POOLS:
        raise UserError(f"{see.origin} has global_pool={pool!r}; understood are {', '.join(_POOLS)}.")
    return _POOLS[pool]


def _stem(see: _Arrays) -> dict[str, Any] | None:
    places = [re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", name) for name in see.arrays]
    units: dict[int, int] = {}
    for place in filter(None, places):
        stage, unit = int(place[1]), int(place[2])
        units[stage] = max(units.get(stage, 0), unit + 1)
    if not any(name.startswith("patch_embed.backbone.") for name in see.arrays):
        return None
    stages = tuple(units.get(i, 1) for i in range(max(units, default=-1) + 1))
    return {"type": "resnet.ResNet", "stages": stages, "norm_eps": 1e-5, "weight_norm": "var", "weight_eps": 1e-8}


def _has_prefix(model: Mapping[str, Any], see: _Arrays, facts: Facts) -> bool:
    """Whether the position embeddings have slots for the tokens before the patches."""
    prefix = specs.prefix_tokens(model)
    if "pos_embed" not in see or not prefix or model["distilled"]:
        return True
    n = see.shape("pos_embed", 3)[1]
    if facts.no_embed_class is not None:
        return not facts.no_embed_class
    if facts.image_size:
        patches = _patches(facts.image_size, model)
        if patches in (n, n - prefix):
            return patches != n
    return specs.square_side(n - prefix) is not None or specs.square_side(n) is None


def _patches(size: tuple[int, int], model: Mapping[str, Any]) -> int:
    height, width = specs.pixels_per_patch(model)
    return (size[0] // height) * (size[1] // width)


def _image_size(model: Mapping[str, Any], see: _Arrays, facts: Facts) -> tuple[tuple[int, int], list[str]]:
    """(height, width) of the images that the arrays are for, and what was assumed."""
    if model["type"] == "mixer.Mixer":
        n = see.shape(_MIXER, 2)[1]
    elif model["posemb"] == "learn":
        n = see.shape("pos_embed", 3)[1] - specs.prefix_tokens(model) * model["posemb_prefix"]
    else:
        return facts.image_size or (224, 224), [] if facts.image_size else ["Nothing says its image size: assumed 224."]
    if facts.image_size and _patches(facts.image_size, model) == n:
        return facts.image_size, []
    side = specs.square_side(n)
    if side is None:
        raise UserError(
            f"{see.origin} is for {n} patches, no square grid; its config.json must say the image size (input_size)."
        )
    height, width = specs.pixels_per_patch(model)
    size = (side * height, side * width)
    stated = [f"Its config.json says images of {facts.image_size}, but its arrays are for {size}."]
    return size, stated if facts.image_size else []


def _mixer(see: _Arrays, facts: Facts) -> tuple[dict[str, Any], list[str]]:
    width, _, *patch = see.shape("stem.proj.weight", 4)
    hidden = {part: see.shape(f"blocks.0.mlp_{part}.fc1.weight", 2)[0] for part in ("tokens", "channels")}
    if hidden["tokens"] != see.shape("blocks.0.mlp_tokens.fc2.weight", 2)[1]:
        raise UserError(f"{see.origin} is a Mixer of gated MLPs, which ours does not have.")
    model = {
        "type": "mixer.Mixer",
        "num_classes": see.classes(),
        "width": width,
        "depth": see.depth(),
        "tokens_mlp_dim": hidden["tokens"],
        "channels_mlp_dim": hidden["channels"],
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "mlp": _mlp(False, facts, see),
        "norm_eps": facts.norm_eps,
    }
    return model, [] if facts.architecture else [
        "There is no config.json beside it: assumed mlp='gelu', norm_eps=1e-06."
    ]
