"""Load pretrained parameters into another model: load or resize what fits, and treat the head as requested."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from vit_jax.checkpoint.transfer import biases, class_heads, positions
from vit_jax.checkpoint.transfer.patches import Grid, adapt_channels, resize_patch_embed
from vit_jax.types import PatchMethod, PosembMethod, Sincos, UserError, compile_regex

Status = Literal["loaded", "resized", "reset", "missing", "left over"]
Shape = tuple[int, ...]
Value = np.ndarray | Callable[[], np.ndarray]  # a function if an initial value is needed

# Fields that may differ without changing what the parameters mean.
FREE = {
    *("mask_token", "variant", "num_classes", "rep_size", "patch_size", "posemb_prefix", "layer_scale", "head_bias"),
    *(
        "dropout",
        "attn_dropout",
        "drop_path",
        "drop_path_rule",
        "scale_by_keep",
        "weight_init",
        "posemb_std",
        "patch_drop",
        "rope.shift",
        "rope.jitter",
        "rope.rescale",
        "rope.param_dtype",
        "attention",
        "remat",
        "scan",
        "dtype",
        "param_dtype",
        "stem.dtype",
        "stem.param_dtype",
    ),
}

# Outputs for unmasked images do not depend on it, so it may be missing or left over.
MASK_TOKEN = "mask_token"


@dataclasses.dataclass(frozen=True)
class Entry:
    """The outcome for one parameter.

    "reset" and "missing" parameters are re-initialized, "missing" ones because the source lacks them; "left over"
    parameters are only in the source.
    """

    name: str
    status: Status
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Merged:
    """All parameters of a model, and a report on each parameter of both sides.

    notes: a sentence on each field in which the models differ, although the parameters fit.
    """

    params: dict[str, np.ndarray]
    report: list[Entry]
    notes: tuple[str, ...] = ()


def merge(
    *,
    source: Mapping[str, np.ndarray],
    source_model: Mapping[str, Any],
    source_classes: tuple[str, ...] | None,
    source_grid: Grid | None,
    model: Mapping[str, Any],
    like: Mapping[str, Any],
    fresh: Callable[[str], np.ndarray],
    classes: tuple[str, ...] | None,
    grid: Grid | None,
    head: class_heads.Mode = "auto",
    posemb: PosembMethod = "bilinear",
    patches: PatchMethod = "bilinear",
    allow: str = "",
) -> Merged:
    """Load the parameters `source` into a model with parameters like `like`: by name, with shape and dtype.

    Both sides have a config, names of classes and a grid of patches (rows, columns); the last two are None if unknown.
    fresh: returns the initial value of a parameter that is re-initialized. head: "keep" needs the same classes, "map"
    copies classes of the same name, "reset" re-initializes the head, "auto" keeps or maps it if the classes are the
    same. posemb, patches: how position and patch embeddings are resized. allow: a regex of names that may be missing,
    left over or of another shape.

    Raises UserError that lists what does not fit.
    """
    allowed = compile_regex(allow, "init.allow") if allow else re.compile(r"(?!)")
    source = {name: np.asarray(leaf, np.float32) for name, leaf in source.items()}
    _check_token_mixing(source, like, source_grid, grid)
    plan = class_heads.plan_head(head, source, like, source_classes, classes)
    fixed = source_model.get("posemb") in get_args(Sincos)
    moved = positions.move(source, like, source_grid, grid, posemb, fixed=fixed)
    values: dict[str, Value] = {}
    report: list[Entry] = []
    unfit: list[str] = []
    for name, leaf in like.items():
        fitted, entry = _fitted(name, source, tuple(leaf.shape), moved, patches, source_grid, grid)
        value: Value | None = fitted
        if class_heads.in_head(name):
            value, entry = _head(entry, fitted, source.get(name), tuple(leaf.shape), plan, fresh)
        if value is None and (allowed.search(name) or name == MASK_TOKEN):
            value = functools.partial(fresh, name)
        if value is None:
            unfit.append(name)
        else:
            values[name] = value
            report.append(entry)
    for name in source:
        if name not in like:
            report.append(Entry(name, "left over"))
            if (
                not allowed.search(name)
                and name != MASK_TOKEN
                and not (class_heads.in_head(name) and plan.mode == "reset")
            ):
                unfit.append(name)
    different = _different(source_model, model)
    if unfit:
        raise UserError(_explanation(unfit, source, like, different))
    notes = [f"model.{key} is {new!r}; the pretrained model has {old!r}." for key, (old, new) in different.items()]
    # Initial values cost a compilation, so they are computed only now that everything fits.
    params = {name: np.asarray(x() if callable(x) else x, like[name].dtype) for name, x in values.items()}
    return Merged(params, report, tuple(notes))


def _fitted(
    name: str,
    source: Mapping[str, np.ndarray],
    shape: Shape,
    moved: positions.Positions,
    patches: PatchMethod,
    old: Grid | None,
    new: Grid | None,
) -> tuple[np.ndarray | None, Entry]:
    """Return the pretrained value of a parameter in the shape of the model, or None if there is none."""
    if name == positions.TABLE and moved.table is not None:
        return moved.table, Entry(name, "resized" if moved.detail else "loaded", moved.detail)
    if name not in source:
        return None, Entry(name, "missing", "re-initialized")
    found = source[name]
    if found.shape == shape and name != positions.TABLE:
        if name in moved.added:
            return found + moved.added[name], Entry(name, "loaded", "plus its position embedding")
        return found, Entry(name, "loaded")
    if name in ("embed/kernel", "stem/root/kernel") and found.ndim == len(shape) == 4 and found.shape[3] == shape[3]:
        same_size, same_channels = found.shape[:2] == shape[:2], found.shape[2] == shape[2]
        # With a stem the patches are cut from its features, not from an image.
        of_image = name == "stem/root/kernel" or "stem/root/kernel" not in source
        if (same_size or name == "embed/kernel") and (same_channels or (of_image and found.shape[2] in (1, 3))):
            value = found if same_size else resize_patch_embed(found, (shape[0], shape[1]), patches)
            return adapt_channels(value, shape[2]), Entry(name, "resized", f"{found.shape} to {shape}")
    if found.shape[1:] == shape[1:] and (table := biases.resized(name, found, shape[0], old, new)) is not None:
        return table, Entry(name, "resized", f"{found.shape} to {shape}")
    return None, Entry(name, "reset", f"allowed; the pretrained model has {found.shape}, here {shape}")


def _head(
    entry: Entry,
    value: np.ndarray | None,
    pretrained: np.ndarray | None,
    shape: Shape,
    plan: class_heads.HeadPlan,
    fresh: Callable[[str], np.ndarray],
) -> tuple[Value | None, Entry]:
    """Return the planned value of a parameter of the head group; `value` is the pretrained one if its shape fits."""
    is_rep = entry.name.startswith("rep/")
    if plan.mode == "reset":
        if is_rep and value is not None:
            return value, entry
        return functools.partial(fresh, entry.name), Entry(entry.name, "reset", plan.why)
    columns: Value | None = value
    if plan.mode == "map" and not is_rep and pretrained is not None:
        fits = pretrained.shape[:-1] == shape[:-1]
        columns = (lambda: class_heads.mapped(plan, pretrained, fresh(entry.name))) if fits else None
    if columns is not None and not is_rep:
        return columns, Entry(entry.name, "loaded", plan.why)
    return columns, entry


def _check_token_mixing(
    source: Mapping[str, np.ndarray], like: Mapping[str, Any], old: Grid | None, new: Grid | None
) -> None:
    """Raise UserError if a Mixer would see another grid of patches."""
    mixing = "encoder/block_0/tokens/up/kernel"
    if mixing not in source or mixing not in like:
        return
    if (old and new and old != new) or source[mixing].shape[0] != like[mixing].shape[0]:
        patches = [f"{g[0]}x{g[1]}" if g else f"{x[mixing].shape[0]}" for g, x in ((old, source), (new, like))]
        raise UserError(
            f"A Mixer works only at the image size it was trained at: it mixes {patches[0]} patches, found {patches[1]} here. "
            "Use an image_size and model.patch_size that give as many, or a ViT."
        )


def _different(source_model: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ and change what the parameters mean, as (pretrained, here)."""

    def fields(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in spec.items():
            flat |= fields(value, f"{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return {
            k: tuple(v) if isinstance(v, list) else v
            for k, v in flat.items()
            if v is not None and k not in FREE and not k.startswith("head.")
        }

    old, new = fields(source_model), fields(model)
    return {key: (old[key], new[key]) for key in old if key in new and old[key] != new[key]}


def _explanation(
    names: Sequence[str],
    source: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    different: Mapping[str, tuple[Any, Any]],
) -> str:
    """Return the message on the parameters that do not fit."""
    lines = []
    for name in names:
        old, new = (tuple(leaves[name].shape) if name in leaves else None for leaves in (source, like))
        if old is None:
            lines.append(f"missing in the pretrained model: {name} {new}")
        else:
            lines.append(f"left over: {name} {old}" if new is None else f"shape: {name} is {old}, here {new}")
    more = [f"... and {len(lines) - 15} more"] if len(lines) > 15 else []
    fields = ", ".join(f"{key} ({old!r}, here {new!r})" for key, (old, new) in different.items())
    return (
        "The pretrained parameters do not fit the model:\n  "
        + "\n  ".join(lines[:15] + more)
        + (f"\nThe models differ in {fields}." if fields else "")
        + "\nUse the pretrained model's fields (a model without a type takes them all), or give init.allow a regex of the "
        "parameters that may be re-initialized or left out."
    )


def is_untrained_head(params: Mapping[str, np.ndarray]) -> bool:
    """Return whether the head's kernel is constant, as it is at initialisation."""
    kernel = params.get("head/kernel")
    return kernel is not None and bool(np.all(kernel == kernel.flat[0]))


def report_lines(entries: Sequence[Entry]) -> list[str]:
    """Return a summary of the statuses, and a line on each parameter that was not loaded unchanged."""
    counts = collections.Counter(entry.status for entry in entries)
    lines = [", ".join(f"{count} {status}" for status, count in counts.items())]
    return lines + [f"  {_line(entry)}" for entry in entries if entry.status != "loaded" or entry.detail]


def report_text(entries: Sequence[Entry]) -> str:
    """Return a line on each parameter, below their summary, for a file."""
    return "\n".join([report_lines(entries)[0], *map(_line, entries)]) + "\n"


def _line(entry: Entry) -> str:
    return f"{entry.status:9} {entry.name}" + (f": {entry.detail}" if entry.detail else "")
