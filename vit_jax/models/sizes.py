"""The size table: the fields of a name such as "B/16"."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.config import other_libraries
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Size:
    """Width, depth, hidden width of the MLP and attention heads of a transformer encoder."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


@dataclasses.dataclass(frozen=True)
class MixerSize:
    """Width, depth and hidden widths of the MLPs of a Mixer across tokens and across channels."""

    width: int
    depth: int
    tokens_mlp_dim: int
    channels_mlp_dim: int


# Ti S: arXiv:2012.12877. B L H: arXiv:2010.11929 table 1. mu M: big_vision. So400m: arXiv:2305.13035. g G: arXiv:2106.04560
# table 2. e: arXiv:2209.06794.
SIZES = {
    "mu": Size(32, 1, 128, 2),
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "M": Size(512, 12, 2048, 8),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "So400m": Size(1152, 27, 4304, 16),
    "H": Size(1280, 32, 5120, 16),
    "g": Size(1408, 40, 6144, 16),
    "G": Size(1664, 48, 8192, 16),
    "e": Size(1792, 56, 15360, 16),
}


# arXiv:2105.01601 table 1.
MIXER_SIZES = {
    "S": MixerSize(512, 8, 256, 2048),
    "B": MixerSize(768, 12, 384, 3072),
    "L": MixerSize(1024, 24, 512, 4096),
}


@dataclasses.dataclass(frozen=True)
class SwinSize:
    """Width of the first stage, and depth and attention heads of every stage."""

    width: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


# arXiv:2103.14030 section 3.3.
SWIN_SIZES = {
    "T": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

# Units of each stage of the ResNet, and the patch size on its feature map: arXiv:2010.11929 section 4.1, arXiv:2106.10270.
HYBRIDS = {
    "R+Ti/16": ((), 8),
    "R26+S/32": ((2, 2, 2, 2), 1),
    "R26+B/32": ((2, 2, 2, 2), 1),
    "R50+B/16": ((3, 4, 9), 1),
    "R50+L/32": ((3, 4, 6, 3), 1),
}


def parse_variant(variant: str, sizes: Mapping[str, Size | MixerSize | SwinSize] = SIZES) -> dict[str, Any]:
    """Return the model fields of a variant "SIZE" or "SIZE/PATCH", such as "So400m/14"."""
    name, slash, patch = variant.partition("/")
    if name not in sizes:
        if hint := other_libraries.model_hint(variant):
            raise UserError(f"Unknown model size in variant={variant!r}{hint}.")
        near = difflib.get_close_matches(name, sizes, n=3, cutoff=0.1) or list(sizes)
        raise UserError(f"Unknown model size {name!r} in variant={variant!r}; near: {', '.join(near)}.")
    fields = dataclasses.asdict(sizes[name])
    if slash:
        if not patch.isdecimal() or int(patch) == 0:
            raise UserError(
                f"variant={variant!r} has the patch size {patch!r}; expected a number of pixels, as in B/16."
            )
        fields["patch_size"] = int(patch)
    return fields


def parse_hybrid(variant: str) -> dict[str, Any]:
    """Return the model fields of a variant "RESNET+SIZE/PATCH", such as "R50+B/16": a ViT on a ResNet's feature map."""
    if variant not in HYBRIDS:
        raise UserError(f"Unknown hybrid variant={variant!r}; expected one of {', '.join(HYBRIDS)}.")
    stages, patch_size = HYBRIDS[variant]
    size = variant.partition("+")[2].partition("/")[0]
    return parse_variant(size) | {"patch_size": patch_size, "stem": {"type": "resnet.ResNet", "stages": stages}}


class FromVariant:
    """Build a network from a size name, which is not one of its fields."""

    def __new__(cls, *_: Any, **fields: Any):
        """Raise UserError if a size name is among the fields."""
        if "variant" in fields:
            raise UserError(
                f"{cls.__name__} has no field variant; write {cls.__name__}.from_variant({fields['variant']!r}, num_classes=10)."
            )
        return super().__new__(cls)

    @classmethod
    def from_variant(cls, variant: str, num_classes: int, **fields: Any) -> Any:
        """Return the network of a size name such as "B/16" or "R50+B/16"; other fields may be given as in a config."""
        from vit_jax.config import factory  # which the networks themselves do not need

        spec = {"type": f"{cls.__module__}:{cls.__qualname__}", "variant": variant, **fields}
        return factory.build(spec, "model", num_classes=num_classes)


def fill_variant(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model config with its `variant`, if any, replaced by the fields of that size; explicit fields win."""
    fields = {key: value for key, value in spec.items() if key != "variant" and value is not None}
    variant = spec.get("variant")
    if not isinstance(variant, str | None):
        raise UserError(f"model.variant is {variant!r}; expected a name such as 'B/16'.")
    if not variant:
        return fields
    network = re.split(r"[.:]", str(spec.get("type")))[-1]
    if network == "ResNet":
        raise UserError(f"A ResNet has no variants; found variant={variant!r}. Give its stages, such as [3, 4, 9].")
    if network == "Swin":
        return parse_variant(variant, SWIN_SIZES) | fields
    if network == "Mixer":
        return parse_variant(variant, MIXER_SIZES) | fields
    return (parse_hybrid(variant) if "+" in variant else parse_variant(variant)) | fields
