"""Turn a loaded model into one exportable function of uint8 images."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import UInt8

from vit_jax import sharding, trees
from vit_jax.explain.network import Network
from vit_jax.export import resize
from vit_jax.inference import Loaded
from vit_jax.pretrained.pretrained import Preprocessing
from vit_jax.train.parts import PLAIN
from vit_jax.types import UserError

Dtype = Literal["float32", "bfloat16"]
ATTENTION = "attention"
# Of pixels, boxes and regressions; without arg max, whose ties rounding would decide.
PREDICTIONS = (("numbers",), ("pixel_outputs",), ("boxes", "box_logits"), ("values",))
Function = Callable[[jax.Array], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Program:
    """An exportable function: uint8 images [b, h, w, c] -> {output: array [b, ...]}, with normalisation and softmax.

    outputs: the shape for one image, by name. any_size: images of any height and width are resized and cropped inside.
    size: bytes of the weights, which are included too.
    """

    function: Function
    image_shape: tuple[int, int, int]
    outputs: dict[str, tuple[int, ...]]
    dtype: Dtype
    any_size: bool
    size: int

    def __call__(self, images: UInt8[np.ndarray, "b h w c"]) -> dict[str, np.ndarray]:
        """Return the outputs for images on this machine, in float32."""
        return jax.device_get(jax.jit(self.function)(images))


def build(
    reference: str, loaded: Loaded, outputs: Sequence[str] = (), dtype: Dtype = "float32", any_size: bool = False
) -> Program:
    """Build the program of a model, in its plain form: without fusion, scan or rematerialization.

    outputs: names of outputs of Task.predict, or "attention", the weights [b, layers, heads, n, n] of all blocks; by
    default the predictions for images, pixels or boxes, or the features if the head is untrained. Raises UserError for
    an unknown output.
    """
    task, weights = plain_form(loaded, dtype)
    network = Network(reference, dataclasses.replace(loaded, task=task, weights=weights))
    preprocessing = _needed_preprocessing(loaded) if any_size else None

    def everything(images: jax.Array, names: Sequence[str] | None) -> dict[str, jax.Array]:
        with sharding.every_platform():
            if preprocessing is not None:
                images = resize.resized(images, preprocessing)
            found = {} if names is not None and {*names} == {ATTENTION} else task.predict(weights, {"image": images})
            if names is None:
                return found
            if ATTENTION in names:
                found[ATTENTION] = jnp.stack(network.attention_of(weights, images), axis=1)
            return {name: found[name].astype(jnp.float32) for name in names}

    height, width, channels = loaded.image_shape
    one = jax.ShapeDtypeStruct((1, height, width, channels), "uint8")
    known = {name: x for name, x in jax.eval_shape(lambda x: everything(x, None), one).items() if x.ndim}
    chosen = tuple(outputs) or _default_outputs(loaded, known)
    for name in chosen:
        if name == ATTENTION:
            network.need_attention("attention to export")
        elif name not in known:
            raise UserError(f"--output={name!r}: the model gives {', '.join([*known, ATTENTION])}; choose among these.")
    shapes = jax.eval_shape(lambda x: everything(x, chosen), one)
    return Program(
        lambda images: needed(lambda x: everything(x, chosen), images), loaded.image_shape,
        {name: shapes[name].shape[1:] for name in chosen}, dtype, any_size,
        sum(leaf.nbytes for leaf in jax.tree.leaves(weights)),
    )  # fmt: skip


def needed(function: Function, images: jax.Array) -> dict[str, jax.Array]:
    """Compute only what the outputs need: converters translate every operation that is traced."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(images)
    program, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals), instantiate=True)
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.core.eval_jaxpr(program, traced.consts, images))


def _default_outputs(loaded: Loaded, known: Collection[str]) -> tuple[str, ...]:
    """Return the outputs that hold what a model predicts, among those that it gives."""
    predictions = [names for names in PREDICTIONS if {*names} <= {*known}]
    if predictions:
        return predictions[0]
    return ("features",) if loaded.has_untrained_head else ("logits",)


def plain_form(loaded: Loaded, dtype: Dtype) -> tuple[Any, Any]:
    """Return the task with its network in plain form and a dtype, and the weights in the dtype used there."""
    module = loaded.task.model
    fields = {**PLAIN, "dtype": dtype}
    cloned: dict[str, Any] = {key: value for key, value in fields.items() if hasattr(module, key)}
    # With heads of its dtype.
    task = dataclasses.replace(loaded.task, model=module.clone(**cloned))  # type: ignore[type-var]
    weights = jax.tree.map(jnp.asarray, jax.device_get(loaded.weights))  # on one device
    if dtype == "bfloat16":
        # Linear layers multiply in bfloat16; a stem standardises its kernels in float32 first.
        weights = trees.map_named(
            lambda name, x: x.astype(jnp.bfloat16) if name.endswith("/kernel") and "/stem/" not in name else x, weights
        )
    return task, weights


def _needed_preprocessing(loaded: Loaded) -> Preprocessing:
    """Return the preprocessing for images of any size; raises UserError if it is not possible inside a program."""
    preprocessing = loaded.preprocessing
    if preprocessing is None or preprocessing.resized is None or preprocessing.method not in resize.METHODS:
        raise UserError(
            f"--any_size puts the resizing into the program; found the preprocessing {loaded.preprocess_spec!r}, expected a "
            f"resize or resize_small by {', '.join(resize.METHODS)}, with or without a central crop: leave --any_size out."
        )
    return preprocessing
