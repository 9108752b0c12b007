"""Tasks: the interface of all training objectives."""

import abc
import contextlib
import dataclasses
import functools
import inspect
import math
import re
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax import trees
from vit_jax.layers.patches import Patches
from vit_jax.types import Images, Params, Rng, UserError

# Arrays by name; `image` may be Patches.
Batch = dict[str, Any]
# Shapes of the arrays of one example, after the transforms.
Spec = Mapping[str, jax.ShapeDtypeStruct]
# The weights for predict and backbone: {"params": ..., other collections}, like Flax's variables.
Weights = Mapping[str, Any]
TaskState = Mapping[str, Any]
Scale = float | tuple[float, ...] | list[float]
# The collections that a module fills for its caller; all other collections except the parameters are the task's state.
SOWN = ("intermediates", "attention")


class Aux(NamedTuple):
    """Auxiliary outputs of a loss: metrics to log, and arrays for `update`; both are means over the examples."""

    metrics: Mapping[str, Array]
    stats: Mapping[str, Any] = {}


class Task(abc.ABC):
    """An objective: initial parameters and state, the loss of a batch, and predictions.

    A task is built from its config with `model` and, if its signature has them, `fields` (the kind of each key of an
    example), `class_names`, `spec` and `steps`. A task that takes class_names has a model with one output per class;
    other tasks have a model without a head (num_classes=0).

    decomposable: the loss is a mean over examples and reads nothing else of the batch, so that parts of a batch can be
    averaged. Accumulation and pmap raise for a task that is not decomposable. any_shape: `image` of a batch may be
    Patches. measured_by: the default evaluator of `vit evaluate`. large: outputs of `predict` that are computed only if
    they are requested by name.
    """

    model: nn.Module
    class_names: tuple[str, ...] = ()
    decomposable: bool = False
    any_shape: bool = False
    measured_by: ClassVar[str] = "classification"
    large: ClassVar[tuple[str, ...]] = ("tokens",)

    @property
    def constants(self) -> Params:
        """Arrays that training reads and never changes or saves, such as a teacher's weights."""
        return {}

    def init(self, rng: Rng, spec: Spec) -> Params:
        """Return initial parameters for examples of these shapes."""
        return init_variables(self.model, rng, spec["image"].shape)["params"]

    def init_state(self, params: Params) -> TaskState:
        """Return the task's own state for the initial parameters."""
        return {}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """Prepare a whole batch for `loss`, for example mix images; examples stay the leading dimension."""
        return batch

    @abc.abstractmethod
    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """Return the training loss of a prepared batch, or of a part of it; `state` is read, never written."""

    def update(self, params: Params, state: TaskState, stats: Mapping[str, Any], step: Array) -> TaskState:
        """Return the state after a step, from the new parameters, the loss's stats and the count of earlier steps."""
        return state

    def evaluated(self, params: Params, state: TaskState) -> dict[str, Weights]:
        """Return {suffix: weights} to evaluate; the suffix "" is the default, which a loaded model uses."""
        return {"": {"params": params}}

    @abc.abstractmethod
    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """Return arrays [b, ...] such as logits, probs and features of raw examples, in inference mode (no dropout)."""

    def backbone(self, weights: Weights) -> tuple[nn.Module, Weights]:
        """Return the image encoder and its variables, a subtree of the weights."""
        return self.model, weights


class WithCollections(Task):
    """A task whose state is the mutable collections of a module, such as batch statistics."""

    @property
    @abc.abstractmethod
    def collections(self) -> tuple[str, ...]:
        """The names of the collections."""

    @abc.abstractmethod
    def first_variables(self) -> Weights:
        """Return the initial variables of the module, including its collections."""

    @property
    def decomposable(self) -> bool:  # type: ignore[override]
        """See Task; False with collections, since batch statistics are computed over the whole batch."""
        return not self.collections

    def init_state(self, params: Params) -> TaskState:
        """See Task."""
        variables = self.first_variables() if self.collections else {}
        return {name: variables[name] for name in self.collections}

    def update(self, params: Params, state: TaskState, stats: Any, step: Array) -> TaskState:
        """See Task."""
        return stats if self.collections else state

    def evaluated(self, params: Params, state: TaskState) -> dict[str, Weights]:
        """See Task."""
        return {"": {"params": params, **state}}


def with_images(batch: Mapping[str, Any]) -> Batch:
    """Return a batch as tasks see it, with `patches`, `coords` and `valid` of images of any shape as one `image`."""
    if "patches" not in batch:
        return dict(batch)
    rest = {key: x for key, x in batch.items() if key not in ("patches", "coords", "valid")}
    return rest | {"image": Patches(batch["patches"], batch["coords"], batch["valid"])}  # type: ignore[dict-item]


def with_image_shape(spec: Spec, channels: int = 3) -> Spec:
    """Return the shapes of an example as tasks see them, with patches as a square image."""
    if "patches" not in spec:
        return spec
    budget, pixels = spec["patches"].shape
    side = math.isqrt(pixels // channels) * math.isqrt(budget)
    rest = {key: x for key, x in spec.items() if key not in ("patches", "coords", "valid")}
    return rest | {"image": jax.ShapeDtypeStruct((side, side, channels), "uint8")}


@contextlib.contextmanager
def reading(task: Task, batch: Mapping[str, Any]) -> Iterator[None]:
    """Raise UserError if a task reads a key that is missing in the batch."""
    try:
        yield
    except KeyError as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line or ""
        own = not re.search(r"\b(batch|spec)\b", line)  # an error from another dict keeps its traceback
        if own or not isinstance(error.args[0], str) or error.args[0] in batch:
            raise
        raise UserError(
            f"{type(task).__name__} reads {error} of an example; found {', '.join(map(repr, batch))}: take another data.source or "
            "data.preprocess, or another task."
        ) from error


def normalize(images: Any, mean: Scale, std: Scale) -> Any:
    """Return images, or Patches, as (pixels / 255 - mean) / std in float32, for one mean and std or one per channel."""
    if isinstance(images, Patches):
        channels = max(len(scale) if isinstance(scale, tuple | list) else 1 for scale in (mean, std))
        planes = rearrange(images.pixels, "b n (p c) -> b n p c", c=channels)
        return images.replace(pixels=rearrange(normalize(planes, mean, std), "b n p c -> b n (p c)"))  # type: ignore[attr-defined]
    channels = images.shape[-1]
    for name, scale in (("mean", mean), ("std", std)):
        if isinstance(scale, tuple | list) and len(scale) != channels:
            raise UserError(f"task.{name} is {scale}; expected one number, or {channels}, one per channel.")
    center, width = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), images.shape[-1]) for x in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - center.reshape(1, 1, 1, -1)) / width.reshape(1, 1, 1, -1)


def check_scale(mean: Scale, std: Scale, what: str = "") -> None:
    """Raise UserError if a standard deviation is not above 0; `what` is a prefix of its name."""
    if min(std if isinstance(std, tuple | list) else (std,), default=0) <= 0:
        raise UserError(f"task.{what}std is {std}, with {what}mean={mean}; expected numbers above 0.")


def stream(rng: Rng, name: str) -> Rng:
    """Return the key of a random stream: the step's own key for "dropout", else a key derived from the name."""
    return rng if name == "dropout" else jax.random.fold_in(rng, zlib.crc32(name.encode()))


def init_variables(module: nn.Module, rng: Rng, image_shape: tuple[int, ...]) -> Weights:
    """Return the initial variables of a network for images of (h, w, c)."""
    return _init(module, rng, jnp.zeros((1, *image_shape)))


def _init(module: nn.Module, rng: Rng, images: Images | Patches) -> Weights:
    return _with_streams(lambda rngs: module.init(rngs, images), rng, first="params")


@functools.cache
def collections_of(module: nn.Module, image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the mutable collections of a network, such as batch statistics."""
    return _collections_for(module, jnp.zeros((1, *image_shape)))


def _collections_for(module: nn.Module, images: Images | Patches) -> tuple[str, ...]:
    shapes = jax.eval_shape(functools.partial(_init, module), jax.random.key(0), images)
    return tuple(sorted(set(shapes) - {"params", *SOWN}))


def apply(
    module: nn.Module, weights: Weights, images: Images | Patches, rng: Rng | None = None
) -> tuple[Array, Mapping[str, Array], Weights]:
    """Apply a network; return its output and sown values, both in float32, and its updated collections.

    With `rng` it runs in training mode. Modules that take no `train`, sow nothing or have no mutable collections work
    too.
    """
    own = [name for name in weights if name != "params"]
    mutable = ["intermediates"] if rng is None else ["intermediates", *own]
    options: dict[str, Any] = {"train": rng is not None} if takes_train(type(module).__call__) else {}

    def run(rngs: dict[str, Rng] | None) -> Any:
        try:
            return module.apply(weights, images, **options, rngs=rngs, mutable=mutable)
        except flax.errors.ScopeCollectionNotFound as error:
            missing = [name for name in _collections_for(module, images) if name not in weights]
            if not missing:
                raise
            raise UserError(
                f"{type(module).__name__} has {', '.join(missing)} besides parameters, which the task does not keep; derive the "
                "task from vit_jax.tasks.supervised.Supervised, and take train_outputs and outputs in place of apply."
            ) from error

    out, updated = run(None) if rng is None else _with_streams(run, rng)
    out, sown = jax.tree.map(lambda x: x.astype(jnp.float32), (out, updated.pop("intermediates", {})))
    return out, sown, updated


def sown_outputs(module: nn.Module, sown: Mapping[str, Array]) -> dict[str, Array]:
    """Return `features` [b, d] and the encoded `tokens` [b, patches, d] of the patches, if a network sows them."""
    found = {"features": sown["features"]} if "features" in sown else {}
    return found | ({"tokens": sown["encoded"][:, getattr(module, "num_prefix", 0) :]} if "encoded" in sown else {})


def features(
    module: nn.Module, weights: Weights, images: Images, rng: Rng | None = None, **options: Any
) -> dict[str, Any]:
    """Return the features of a network's stages (see ViT.features) in float32; in training mode with `rng`."""
    run = functools.partial(
        module.apply, weights, images, train=rng is not None, method=lambda m, *a, **k: m.features(*a, **k), **options
    )
    found: Any = run() if rng is None else _with_streams(lambda rngs: run(rngs=rngs), rng)
    return jax.tree.map(lambda x: x.astype(jnp.float32) if isinstance(x, jax.Array) else x, found)


@functools.cache
def takes_train(call: Callable[..., Any]) -> bool:
    """Return whether a network's __call__ takes `train`."""
    parameters = inspect.signature(call).parameters
    return "train" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _with_streams(run: Callable[[dict[str, Rng]], Any], rng: Rng, first: str = "dropout") -> Any:
    """Call run(rngs), adding a key for each random stream that it turns out to need."""
    rngs = {first: rng}
    while True:
        try:
            return run(rngs)
        except flax.errors.InvalidRngError as error:
            needed = re.search(r'needs PRNG for "(\w+)"', str(error))
            if needed is None or needed[1] in rngs:
                raise
            rngs[needed[1]] = stream(rng, needed[1]) if first == "dropout" else jax.random.fold_in(rng, len(rngs))


@dataclasses.dataclass(frozen=True)
class BackboneNames:
    """Names of the backbone's parameters among all parameters of a task.

    full: maps the name in the backbone to the name among all parameters.
    """

    module: nn.Module
    full: Mapping[str, str]

    def layers(self, params: Params) -> dict[str, int]:
        """Return the layer of each parameter by name, 0 for the embedding; heads outside the backbone are in the last."""
        if not hasattr(self.module, "layer_of"):
            raise UserError(
                f"optim.layer_decay needs the layer of each parameter; {type(self.module).__name__} has no method "
                "layer_of(name): add one, which returns 0 for the embedding, or leave layer_decay unset."
            )
        found = {full: self.module.layer_of(name) for name, full in self.full.items()}
        last = max(found.values(), default=0)
        return {name: found.get(name, last) for name in trees.flatten(params)}


def backbone_names(task: Task, params: Params) -> BackboneNames:
    """Return the names of the backbone's parameters, given all parameters or their shapes."""
    module, variables = task.backbone({"params": trees.map_named(lambda name, _: name, params)})
    return BackboneNames(module, trees.flatten(variables["params"]))
