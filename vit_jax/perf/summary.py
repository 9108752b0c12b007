"""Show a network as a table: the output, parameters and FLOPs of each module."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vit_jax import flops, trees
from vit_jax.tasks.task import takes_train
from vit_jax.train.parts import PLAIN


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module, or a parameter outside of any: its output shape for a batch, its parameters, bytes and FLOPs."""

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    bytes: int
    flops: float


def layers(
    module: Any, variables: Mapping[str, Any], image_shape: Sequence[int], batch_size: int, depth: int
) -> list[Layer]:
    """Return modules with parameters or FLOPs down to `depth` levels, in call order, and the total, without computing.

    variables: arrays or their shapes. FLOPs are for one forward pass of the plain network; see flops.count.
    """
    plain: dict[str, Any] = {key: value for key, value in PLAIN.items() if hasattr(module, key)}
    module = module.clone(**plain)
    options = {"train": False} if takes_train(type(module).__call__) else {}
    called: dict[str, tuple[str, tuple[int, ...]]] = {}

    def record(following: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        path = "/".join(context.module.path)
        if context.method_name != "__call__":
            return following(*args, **kwargs)
        called.setdefault(path, (type(context.module).__name__, ()))  # on entry, so that modules precede their parts
        out = following(*args, **kwargs)
        first = next(iter(jax.tree.leaves(out)), None)
        called[path] = (type(context.module).__name__, () if first is None else tuple(first.shape))
        return out

    def run(variables: Mapping[str, Any], images: jax.Array) -> Any:
        return module.apply(variables, images, **options)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(variables))
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    with nn.intercept_methods(record):
        scopes = flops.by_scope(run, shapes, images)
    params = trees.flatten(shapes["params"])
    kind, shape = called.pop("")
    shown = [path for path in called if is_shown(path, called, depth)]
    spent = dict.fromkeys(shown, 0.0)
    for scope, count in scopes.items():
        owner = owner_of(scope, shown)
        if owner is not None:
            spent[owner] += count
    owned = dict.fromkeys(shown, 0) | {owner_of(name, shown) or name: 0 for name in params}
    size = dict(owned)
    for name, leaf in params.items():
        owner = owner_of(name, shown) or name
        owned[owner] += leaf.size
        size[owner] += leaf.size * leaf.dtype.itemsize
    loose = [name for name in owned if name not in called]
    found = [Layer(name, "parameter", tuple(params[name].shape), owned[name], size[name], 0.0) for name in loose]
    found += [Layer(path, called[path][0], called[path][1], owned[path], size[path], spent[path]) for path in shown]
    found = [row for row in found if row.params or row.flops]  # leaves out dropout and the like
    return [*found, Layer("total", kind, shape, sum(owned.values()), sum(size.values()), sum(scopes.values()))]


def is_shown(path: str, called: Mapping[str, Any], depth: int) -> bool:
    """Return whether a module has a row: it is at the last level, or above it without inner modules."""
    levels = path.count("/") + 1
    return levels == depth or (levels < depth and not any(other.startswith(f"{path}/") for other in called))


def owner_of(name: str, paths: Sequence[str]) -> str | None:
    """Return the module in `paths` that owns a parameter or scope; methods and transforms in the name are ignored."""
    parts = [part for part in name.split("/") if "." not in part and "(" not in part]
    for start in (0, 1):  # a scope begins with the class of the whole network
        for end in range(len(parts), start, -1):
            if "/".join(parts[start:end]) in paths:
                return "/".join(parts[start:end])
    return None


def as_text(rows: Sequence[Layer]) -> str:
    """Return the table as lines of text; percentages are of the total."""
    whole = rows[-1]
    unit, scale = ("GFLOPs", 1e9) if whole.flops >= 1e9 else ("MFLOPs", 1e6)
    cells = [("layer", "type", "output", "parameters", "", unit, "")]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        shares = [
            f"{100 * part / of:.1f} %" if of else ""
            for part, of in ((row.params, whole.params), (row.flops, whole.flops))
        ]
        cells.append((row.name, row.kind, shape, f"{row.params:,}", shares[0], f"{row.flops / scale:,.3f}", shares[1]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            x.ljust(w) if i < 3 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
