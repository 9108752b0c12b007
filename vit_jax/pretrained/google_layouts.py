"""The layouts in which Google's repositories name the arrays of a model, brought to one: big_vision's of today.

That is google-research/big_vision models/vit.py: modules numbered within their class, `pos_embedding` at the top, a module for
each block. The arrays themselves are the same in all of them, but for blocks that were scanned over.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

from vit_jax.pretrained.links import Flat

# Before Flax's linen, modules were numbered in the order of their making, whatever their class.
_NUMBERED = re.compile(r"(MultiHeadDotProductAttention|LayerNorm|MlpBlock|Dense|MAPHead)_(\d+)")
_GROUP_NORM = re.compile(r"gn(\d+|_root|_proj)/(scale|bias)$")
ORIGINAL_POSITIONS = "Transformer/posembed_input/pos_embedding"
_POSITIONS = (ORIGINAL_POSITIONS, "Transformer/pos_embedding")
_SCANNED = "Transformer/encoderblock/"
# The attention pooling head of a time when it was no module of its own.
_INLINED_HEAD = re.compile(r"probe$|(MultiHeadDotProductAttention|LayerNorm|MlpBlock)_0/")


def model_branch(arrays: Flat) -> tuple[Flat, str, list[str]]:
    """The arrays of the image model in a file, the branch at which they stand, and the other branches of the file.

    A branch is "", "params/" (optax), "opt/target/" (Flax's optimizers) or, of an image and a text tower, "params/img/".
    """
    branch = next((b for b in ("params/", "opt/target/") if any(n.startswith(b) for n in arrays)), "")
    if any(name.startswith(f"{branch}img/") for name in arrays):
        branch += "img/"
    inside = {name.removeprefix(branch): array for name, array in arrays.items() if name.startswith(branch)}
    others = {_leaving(name, branch) for name in arrays if not name.startswith(branch)}
    return inside, branch, sorted(others)


def _leaving(name: str, branch: str) -> str:
    """The first part of a name that is not on the branch: "params/txt" of "params/txt/head/kernel"."""
    parts, path = name.split("/"), branch.split("/")
    shared = next((i for i, (part, on) in enumerate(zip(parts, path, strict=False)) if part != on), len(parts) - 1)
    return "/".join(parts[: shared + 1])


def to_big_vision(arrays: Flat) -> Flat:
    """A model's arrays under big_vision's names of today, blocks one by one, scales and biases as vectors."""
    renamed: Flat = {}
    for name, array in zip(_number_by_class(arrays), arrays.values(), strict=True):
        if name in _POSITIONS:
            name = "pos_embedding"
        if _INLINED_HEAD.match(name):
            name = f"MAPHead_0/{name}"
        if _GROUP_NORM.search(name) and array.ndim:
            array = array.reshape(-1)  # (1, 1, 1, c) in files of before 2022
        if name.startswith(_SCANNED) and array.ndim:
            rest = name.removeprefix(_SCANNED)
            renamed |= {f"Transformer/encoderblock_{i}/{rest}": part for i, part in enumerate(array)}
        else:
            renamed[name] = array
    return renamed


def _number_by_class(names: Iterable[str]) -> list[str]:
    """The names with every module's number counted within its class: LayerNorm_0, LayerNorm_2 -> LayerNorm_0, LayerNorm_1."""
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    paths = [name.split("/") for name in names]
    for path in paths:
        for i, part in enumerate(path):
            if match := _NUMBERED.fullmatch(part):
                numbers["/".join(path[:i]), match[1]].add(int(match[2]))

    def count(parent: str, part: str) -> str:
        match = _NUMBERED.fullmatch(part)
        if match is None:
            return part
        return f"{match[1]}_{sorted(numbers[parent, match[1]]).index(int(match[2]))}"

    return ["/".join(count("/".join(path[:i]), part) for i, part in enumerate(path)) for path in paths]


def to_original(arrays: Flat) -> Flat:
    """The same under the names of the first files of google-research/vision_transformer, which every reader knows."""

    def rename(name: str) -> str:
        if name == "pos_embedding":
            return ORIGINAL_POSITIONS
        if name.startswith("Transformer/encoderblock_"):
            for linen, older in (
                ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
                ("LayerNorm_1", "LayerNorm_2"),
                ("MlpBlock_0", "MlpBlock_3"),
            ):
                name = name.replace(f"/{linen}/", f"/{older}/")
        return name

    return {rename(name): array for name, array in arrays.items()}
