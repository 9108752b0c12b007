"""Find a model's weights in the output of training scripts: wrapped, prefixed, with an average, optimizer or decoder.

A wrapper of a .pth file, such as "model_state_dict", is a prefix of its array names here.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.types import UserError

# The first array of a ViT, hybrid or Mixer with the names of timm and transformers, after the shortest possible prefix.
_FIRST = re.compile(
    r"((?:[^./]+[./])*?)(?:patch_embed\.(?:proj|backbone\.(?:stem\.)?conv)\.weight|stem\.proj\.weight"
    r"|(?:(?:vit|deit|swin|swinv2|beit|ijepa|dinov2|dinov2_with_registers)\.)?"
    r"embeddings\.patch_embeddings\.(?:projection\.)?weight)"
)
_AVERAGED = {"ema", "teacher", "target", "averaged", "average", "avg", "swa", "shadow", "polyak"}
_MOMENTS = {"optimizer", "optim", "opt", "mu", "nu", "exp_avg", "exp_avg_sq", "momentum_buffer", "trace"}
# If several models that are not averages of each other are saved, the first of these is used.
_PREFERRED = (
    *(
        "model",
        "state",
        "module",
        "net",
        "network",
        "params",
        "student",
        "backbone",
        "encoder",
        "base",
        "visual",
        "img",
    ),
)
# Parts only for pretraining or profiling, which do not change the results of the rest.
_EXTRAS = re.compile(
    r"(?:decoder|dec|projectors?|projection_head|proj_head|predictor|prototypes|head\.(?:mlp|last_layer)|lm_head|local_cls_norm)"
    r"(?=[._\d]|$)|.*\b(?:total_ops|total_params|num_batches_tracked|n_averaged)$"
)
_HEAD = r"(?:head|fc|classifier)\.(weight|bias)"


def unwrap(arrays: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays of one model without their prefix, and notes on the arrays chosen and left out.

    Averaged weights are preferred. A linear head next to a backbone belongs to it. Arrays without a ViT's first array
    are returned without the prefix common to all, except Google's. Raises UserError if several models are equally
    likely.
    """
    first = {match[0]: match[1] for name in arrays if (match := _FIRST.fullmatch(name))}
    if not first:  # Google's layouts have branches; their reader chooses among them
        return (dict(arrays) if any("/" in name for name in arrays) else _without_common_prefix(arrays)), []
    prefix, notes = choose(
        {p: {name: x for name, x in arrays.items() if name.startswith(p)} for p in first.values()}, origin
    )
    others = [p for p in first.values() if p != prefix]
    inside, outside = {}, []
    for name, array in arrays.items():
        if name.startswith(prefix) and not any(len(p) > len(prefix) and name.startswith(p) for p in others):
            inside[name.removeprefix(prefix)] = array
        elif not any(name.startswith(p) for p in others) and not _words(name) & _MOMENTS and array.ndim:
            outside.append(name)
    head = {} if any(re.fullmatch(_HEAD, name) for name in inside) else _head_beside(arrays, prefix, inside)
    if head:
        inside |= {name: arrays[theirs] for name, theirs in head.items()}
        notes.append(f"The head is {', '.join(head.values())}, which is next to the backbone.")
    extras = [name for name in inside if _EXTRAS.match(name)]
    if "mask_token" in inside and any(re.match(r"dec(oder)?[._\d]", name) for name in extras):  # MAE's is the decoder's
        extras.append("mask_token")
    left_out = [name for name in outside if name not in head.values()] + extras
    if left_out:
        parts = Counter(re.split(r"[./]", name)[0] for name in left_out)
        notes.append(f"Not loaded: {', '.join(f'{part} ({count} arrays)' for part, count in sorted(parts.items()))}.")
    return {name: array for name, array in inside.items() if name not in extras}, notes


def choose(candidates: Mapping[str, Mapping[str, Any]], origin: str) -> tuple[str, list[str]]:
    """Choose the prefix of the model to use, given the arrays below each; also return a note if there is a choice."""
    usable = [p for p in candidates if not _words(p) & _MOMENTS] or list(candidates)
    averaged = [p for p in usable if _words(p) & _AVERAGED and _is_average(p, candidates, usable)]
    ranked = sorted(averaged or usable, key=_preference)
    if len(ranked) > 1 and not averaged and _preference(ranked[0]) == _preference(ranked[1]):
        raise UserError(
            f"{origin} contains several models, under {', '.join(sorted(ranked))}; save the one to use in a file of its own."
        )
    found = ranked[0]
    others = ", ".join(sorted(p.rstrip("./") or "no prefix" for p in usable if p != found))
    kind, place = ("averaged " if averaged else ""), f"under {found.rstrip('./')!r}" if found else "without a prefix"
    if others:
        return found, [f"The {kind}weights {place} are used, not those under {others}."]
    return found, [f"Its weights are {place}."] if found else []


def _words(prefix: str) -> set[str]:
    """Return the components of a prefix and the words in them, in lower case: "modelEMA." has modelema, model and ema."""
    parts = re.split(r"[./]", prefix)
    words = [word for part in parts for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)]
    return {word.lower() for word in (*parts, *words)}


def _is_average(prefix: str, candidates: Mapping[str, Mapping[str, Any]], usable: Collection[str]) -> bool:
    """Return whether another model has arrays of the same shapes, or there is none: a larger teacher is no average."""

    def shapes(p: str) -> dict[str, Any]:
        return {name[len(p) :]: tuple(x.shape) for name, x in candidates[p].items()}

    mine = shapes(prefix)
    rest = [shapes(p) for p in usable if not _words(p) & _AVERAGED]
    return not rest or any(all(mine[name] == s[name] for name in mine.keys() & s.keys()) for s in rest)


def _preference(prefix: str) -> int:
    words = _words(prefix)
    return next((i for i, word in enumerate(_PREFERRED) if word in words), len(_PREFERRED) if prefix else -1)


def _head_beside(arrays: Mapping[str, Any], prefix: str, inside: Mapping[str, Any]) -> dict[str, str]:
    """Return {name in the model: name in the file} of a linear head in a module above the backbone."""
    width = next(array.shape[0] for name, array in inside.items() if _FIRST.fullmatch(name))
    target = "classifier" if any("embeddings.patch_embeddings" in name for name in inside) else "head"
    while prefix:
        prefix = re.sub(r"[^./]+[./]$", "", prefix)
        found = {m[1]: prefix + m[0] for name in arrays if (m := re.fullmatch(_HEAD, name.removeprefix(prefix)))}
        found = {leaf: name for leaf, name in found.items() if name in arrays}
        if found.keys() == {"weight", "bias"} and arrays[found["weight"]].shape[1:] == (width,):
            return {f"{target}.{leaf}": name for leaf, name in found.items()}
    return {}


def _without_common_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Strip components shared by all names, and choose among wrappers by them."""
    found = dict(arrays)
    while found and all("." in name for name in found):
        groups = {match[1] for name in found if (match := re.match(r"([^.]+\.)", name))}
        chosen = min(sorted(groups), key=_preference)
        if len(groups) > 1 and _preference(chosen) == len(_PREFERRED):
            break
        found = {name.removeprefix(chosen): array for name, array in found.items() if name.startswith(chosen)}
    return found
