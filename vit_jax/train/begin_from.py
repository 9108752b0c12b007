"""Initialize the parameters of a run from another model."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vit_jax import printable, trees
from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.transfer.merge import Entry, Merged, merge, report_lines, report_text
from vit_jax.checkpoint.transfer.patches import resize_patch_embed
from vit_jax.config.factory import build, call, first
from vit_jax.inference import Loaded
from vit_jax.layers.geometry import rows_and_columns
from vit_jax.layers.patches import interpolated
from vit_jax.pretrained.pretrained import from_spec
from vit_jax.pretrained.specs import pair
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.task import Spec, Task, backbone_names
from vit_jax.tasks.towers import Towers
from vit_jax.train.settings import check_init
from vit_jax.types import UserError


def grid_of(module: nn.Module, image_shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the rows and columns of a network's position embeddings; None for a network without `grid`."""
    if (fixed := getattr(module, "posemb_grid", None)) is not None:
        return tuple(fixed)
    grid = getattr(module, "grid", None)
    return grid(image_shape[:2]) if grid else None


def stated(module: nn.Module) -> dict[str, Any]:
    """Return every field of a network with its value, defaults included, as in a config."""
    values = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    own = {key: value for key, value in values.items() if key not in ("parent", "name")}
    return {key: stated(value) if isinstance(value, nn.Module) else value for key, value in own.items()}


def begin(source: Loaded, init: Mapping[str, Any], task: Task, spec: Spec, seed: int) -> Merged:
    """Return the initial parameters of a run: the backbone of another model; other parameters are re-initialized.

    Towers also take what `beside_backbone` returns. Raises UserError that lists the mismatches.
    """
    asked = call("init", check_init, init)

    def initial() -> dict[str, Any]:
        return trees.flatten(task.init(jax.random.key(seed), spec))

    @functools.cache
    def compiled() -> dict[str, np.ndarray]:
        return jax.device_get(jax.jit(initial)())

    like = jax.eval_shape(initial)
    names = backbone_names(task, trees.nest(like))
    shape = spec["image"].shape if "image" in spec else source.image_shape
    merged = merge(
        source=source.arrays,
        source_model=stated(source.model),
        source_classes=source.class_names if source.names_known else None,
        source_grid=grid_of(source.model, source.image_shape),
        model=stated(names.module),
        like={name: like[full] for name, full in names.full.items()},
        fresh=lambda name: compiled()[names.full[name]],
        classes=task.class_names or None,
        grid=grid_of(names.module, shape),
        head=asked["head"],
        posemb=source.posemb if asked["posemb"] == "auto" else asked["posemb"],
        patches=source.patches if asked["patches"] == "auto" else asked["patches"],
        allow=asked["allow"] or "",
    )
    params = {names.full[name]: leaf for name, leaf in merged.params.items()}
    report = [dataclasses.replace(entry, name=names.full.get(entry.name, entry.name)) for entry in merged.report]
    others = [name for name in like if name not in params]
    taken = beside_backbone(source, task, like)
    params |= {name: taken[name] if name in taken else compiled()[name] for name in others}
    report += [
        Entry(name, "loaded", "from the other towers")
        if name in taken
        else Entry(name, "reset", "outside the backbone, re-initialized")
        for name in others
    ]
    return dataclasses.replace(merged, params=params, report=report, notes=(*merged.notes, *source.notes))


def at_size(loaded: Loaded, size: tuple[int, int]) -> Loaded:
    """Return a classifier or encoder for images of another (height, width), with positions resized by its source's rule.

    Its preprocessing is scaled. Raises UserError for other tasks, for preprocessing that is no resize and crop, and for
    networks that work at one size only.
    """
    plain = (
        loaded.preprocessing
        if loaded.preprocess_spec
        else from_spec(f"resize({loaded.image_shape[:2]})", *loaded.scale)
    )
    if plain is None or not isinstance(loaded.task, Classify):
        what = f"the preprocessing {loaded.preprocess_spec!r}" if plain is None else type(loaded.task).__name__
        raise UserError(
            f"Found {what}; another image size needs a classifier or encoder whose images are resized and cropped: train it "
            "with config.image_size."
        )
    spec = {"image": jax.ShapeDtypeStruct((*size, loaded.image_shape[2]), "uint8")}
    merged = begin(loaded, {"ref": "the model itself", "head": "auto"}, loaded.task, spec, 0)
    had = trees.flatten(jax.device_get(loaded.weights["params"]))
    reset = {entry.name for entry in merged.report if entry.status == "reset"}  # an untrained head
    params = {name: had[name] if name in reset else leaf for name, leaf in merged.params.items()}
    whole, resized = loaded.image_shape[:2], plain.resized
    if resized is not None:
        sides = pair(resized)
        resized = (round(sides[0] * size[0] / whole[0]), round(sides[1] * size[1] / whole[1]))
        if plain.keep_ratio and resized[0] == resized[1]:
            resized = resized[0]
    preprocessing = dataclasses.replace(plain, size=size, resized=resized)
    weights = {**loaded.weights, "params": trees.nest(params)}
    return dataclasses.replace(
        loaded, weights=weights, preprocess_spec=preprocessing.spec, image_shape=(*size, loaded.image_shape[2])
    )


def at_patch_size(loaded: Loaded, size: int) -> Loaded:
    """Return a FlexiViT as a ViT with patches of `size` pixels: its patch kernel and positions, resized once.

    Raises UserError for other networks and tasks, and for patches that do not tile the images.
    """
    network = loaded.model
    if not hasattr(network, "base_patch") or not isinstance(loaded.task, Classify):
        found = type(loaded.task if hasattr(network, "base_patch") else network).__name__
        raise UserError(
            f"Found {found}; another patch size needs a classifier or encoder of type flexivit.FlexiViT. To begin a run with "
            "other patches from any ViT, give config.init.ref and config.model.patch_size."
        )
    height, width, _ = loaded.image_shape
    if height % size or width % size:
        raise UserError(
            f"Patches of {size} pixels do not tile images of {height} x {width} pixels; give a divisor of both."
        )
    params = dict(loaded.arrays)
    params["embed/kernel"] = resize_patch_embed(params["embed/kernel"], (size, size))
    # Positions are interpolated as the network does it, which differs from the methods of `merge`.
    grid, had = (height // size, width // size), network.posemb_grid
    if "posemb/table" in params and had is not None and grid != had:
        prefix, patches = np.split(params["posemb/table"], [params["posemb/table"].shape[1] - had[0] * had[1]], axis=1)
        table = jnp.asarray(patches.reshape(*had, -1))
        between = interpolated(table, rows_and_columns(grid, None)[None], jnp.asarray([grid]))
        params["posemb/table"] = np.concatenate([prefix, np.asarray(between)], axis=1)
    own = ("type", "patch_size", "patch_sizes", "base_patch", "posemb_grid")
    fields = {key: value for key, value in loaded.spec.items() if key not in own} | {"patch_size": size}
    return dataclasses.replace(
        loaded,
        spec={"type": "vit.ViT"} | fields,
        task=dataclasses.replace(loaded.task, model=build({"type": "vit.ViT"} | fields, "model")),
        weights={**loaded.weights, "params": trees.nest(params)},
    )


def beside_backbone(source: Loaded, task: Task, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the parameters of other towers to load besides the backbone: text tower, projection, scale and bias.

    Raises UserError if their shapes differ.
    """
    if not (isinstance(task, Towers) and isinstance(source.task, Towers)):
        return {}
    flat = trees.flatten(jax.device_get(source.weights["params"]))
    taken = {name: leaf for name, leaf in flat.items() if name in like and not name.startswith("backbone/")}
    different = [f"{k}: {x.shape} there, {like[k].shape} here" for k, x in taken.items() if x.shape != like[k].shape]
    if different:
        raise UserError(
            "The text tower of init.ref differs from task.text: "
            + "".join(first([f"\n  {line}" for line in different]))
            + "\nTake the same sizes and the tokenizer of that model."
        )
    return taken


def write_merge_report(merged: Merged, ref: str, path: Path) -> None:
    """Print how the model's parameters were loaded, and write the full report to init.txt in the workdir."""
    workdirs.write_text(path / "init.txt", printable.lines(report_text(merged.report)))
    notes = (f"note: {note}" for note in merged.notes)
    shown = (f"begins from {ref}:", *report_lines(merged.report), *notes)
    print(*map(printable.line, shown), sep="\n", flush=True)
