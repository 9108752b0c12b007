"""Base class for objectives with predictions for each pixel: a head on feature maps, and sliding windows."""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.data.source import Field, Fields
from vit_jax.layers.bilinear import Map, bilinear, bilinear_of_parts
from vit_jax.models import heads
from vit_jax.models.dense_heads import Linear
from vit_jax.tasks import task
from vit_jax.tasks.headless import Headless
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState, Weights, WithCollections
from vit_jax.types import Images, Params, Rng, Units, UserError

Size = tuple[int, int]
Outputs = Float[Array, "b rows columns o"]
Variables = Mapping[str, Any]


def starts(size: int, window: int, stride: int) -> list[int]:
    """Return the offsets of windows along a side: every `stride` pixels, and the last window at the end of the side."""
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(0, min(i * stride, size - window)) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Dense(WithCollections, Headless):
    """Train a head on the feature maps of a backbone; the loss is a mean over examples, each over its labelled pixels.

    head: a module of models/dense_heads.py, Linear by default. layers: the blocks or stages whose maps the head reads,
    from 0, or from the last one with negative numbers; a ViT applies its last LayerNorm to them. window: the size of
    the images that the network sees at inference, by default the size of the training images; other images are
    predicted in windows every `stride` pixels, by default 2/3 of the window, and overlapping outputs are averaged.
    scales: "..._multi" outputs are averages over the image and its mirror image at these scales.

    If an example has `own_size` (see transforms/dense.py), its predictions are resized to it. Batch statistics of the
    head are the task's state.
    """

    fields: Fields | None = None
    spec: Spec | None = None
    head: nn.Module | None = None
    layers: tuple[int, ...] = (-1,)
    window: Units | tuple[Units, Units] | None = None
    stride: Units | tuple[Units, Units] | None = None
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    large = ("tokens", "pixel_outputs", "pixel_probs", "pixel_probs_multi", "segments_multi", "numbers_multi")

    kind = Field

    def __post_init__(self):
        super().__post_init__()
        if not hasattr(self.model, "features"):
            raise UserError(
                f"task.{type(self).__name__} reads feature maps; {type(self.model).__name__} has no method features(images)."
            )
        if not self.layers or not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"task.layers is {self.layers} and task.scales {self.scales}; expected at least one layer and scales above 0."
            )
        dtypes = (getattr(self.model, name, "float32") for name in ("dtype", "param_dtype"))
        object.__setattr__(self, "head", heads.fitted(self.head or Linear(), self.num_outputs, *dtypes))

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """The number of outputs for each pixel."""

    @functools.cached_property
    def key(self) -> str:
        """The key of the pixel labels in an example; raises UserError unless there is exactly one."""
        found = [key for key, field in (self.fields or {}).items() if isinstance(field, self.kind)]
        if len(found) != 1:
            raise UserError(
                f"task.{type(self).__name__} learns one {self.kind.__name__} field; found examples with "
                f"{', '.join(map(repr, self.fields or {})) or 'no fields'}: take a source of segments.py, or another task."
            )
        return found[0]

    @functools.cached_property
    def network_size(self) -> Size:
        """Height and width of the images that the network sees."""
        if self.window is not None:
            return (self.window, self.window) if isinstance(self.window, int) else self.window
        assert self.spec is not None
        return self.spec["image"].shape[0], self.spec["image"].shape[1]

    @functools.cached_property
    def window_stride(self) -> Size:
        """Steps between windows, down and across."""
        if self.stride is None:
            return max(1, self.network_size[0] * 2 // 3), max(1, self.network_size[1] * 2 // 3)
        return (self.stride, self.stride) if isinstance(self.stride, int) else self.stride

    # Parameters and state.

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        backbone = self.init_backbone(rng, spec["image"].shape)
        return {"backbone": backbone, "head": self._init_head(task.stream(rng, "head"), spec)["params"]}

    def _init_head(self, rng: Rng, spec: Spec) -> Variables:
        assert self.head is not None
        images = jax.ShapeDtypeStruct((1, *spec["image"].shape), jnp.float32)
        backbone = jax.eval_shape(lambda: self.init_backbone(jax.random.key(0), spec["image"].shape))
        maps = jax.eval_shape(lambda params, x: self.maps({"params": params}, x)[0], backbone, images)
        return self.head.init(rng, [jnp.zeros(x.shape, x.dtype) for x in maps])

    @functools.cached_property
    def collections(self) -> tuple[str, ...]:
        """The mutable collections of the head."""
        if self.spec is None:
            return ()
        shapes = jax.eval_shape(lambda: self._init_head(jax.random.key(0), self.spec or {}))
        return tuple(sorted(set(shapes) - {"params", *task.SOWN}))

    def first_variables(self) -> Weights:
        """See WithCollections."""
        return self._init_head(jax.random.key(0), self.spec or {})

    # Outputs.

    def maps(self, variables: Variables, images: Images, rng: Rng | None = None) -> tuple[list[Array], dict[str, Any]]:
        """Return the feature maps of the chosen layers, and all features of normalised images."""
        options = {"norm_stages": True} if hasattr(self.model, "norm_after_pool") else {}
        found = task.features(self.model, variables, images, rng, **options)
        stages, prefix = found["stages"], found["prefix"]
        if not all(-len(stages) <= i < len(stages) for i in self.layers):
            raise UserError(
                f"task.layers={self.layers}; the network has {len(stages)}: numbers from {-len(stages)} to {len(stages) - 1}."
            )
        grids = found.get("grids") or [found["grid"]] * len(stages)
        shapes = [(stages[i].shape[0], *grids[i], -1) for i in self.layers]
        return [stages[i][:, prefix:].reshape(shape) for i, shape in zip(self.layers, shapes, strict=True)], found

    def coarse(self, weights: Weights, images: Images, rng: Rng | None = None) -> tuple[Outputs, Any, dict[str, Any]]:
        """Return the head's outputs at its own size in float32, its updated collections, and the backbone features."""
        assert self.head is not None
        maps, found = self.maps(self.backbone(weights)[1], images, rng)
        variables = {"params": weights["params"]["head"], **{name: weights[name] for name in self.collections}}
        if rng is None:
            return self.head.apply(variables, maps).astype(jnp.float32), {}, found  # type: ignore[union-attr]
        out, updated = self.head.apply(
            variables, maps, train=True, mutable=list(self.collections), rngs={"dropout": task.stream(rng, "head")}
        )
        return out.astype(jnp.float32), updated, found  # type: ignore[union-attr]

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task."""
        labels = batch[self.key]
        out, updated, _ = self.coarse({"params": params, **state}, self.normalize(batch["image"]), rng)
        out = bilinear(out, (labels.shape[1], labels.shape[2]))
        losses, metrics = self.losses(out, labels)
        return losses.mean(), Aux({name: x.mean() for name, x in metrics.items()}, updated)

    @abc.abstractmethod
    def losses(self, outputs: Map, labels: Array) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        """Return the loss of each example and metrics, from the head's outputs at the size of the labels."""

    @abc.abstractmethod
    def predicted(self, outputs: Map) -> Map:
        """Convert outputs of the head to predictions that are averaged over scales, such as probabilities."""

    def pixel_outputs(self, weights: Weights, batch: Batch) -> Map:
        """Return the head's outputs for each pixel of the images, at their `own_size` if the batch has it."""
        images = self.normalize(batch["image"])
        return self._at_own_size(self._in_windows(weights, images), batch)

    def multi_scale(self, weights: Weights, batch: Batch) -> Map:
        """Return the mean of the predictions for the images and their mirror images at all scales."""
        images = self.normalize(batch["image"])
        sizes = [tuple(max(1, round(scale * side)) for side in images.shape[1:3]) for scale in self.scales]
        resized = [bilinear(images, (size[0], size[1])) for size in sizes]
        both = [jnp.concatenate([x, x[:, :, ::-1]]) for x in resized]
        total: Any = 0.0
        for out in self._windows_of(weights, both):
            out = bilinear(out, (images.shape[1], images.shape[2])).reshape(2, *images.shape[:3], out.shape[-1])
            for one in (out[0], out[1, :, :, ::-1]):
                total = total + self.predicted(self._at_own_size(one, batch))
        return total / (2 * len(self.scales))

    def _in_windows(self, weights: Weights, images: Images) -> Outputs:
        if images.shape[1:3] == self.network_size:
            return bilinear(self.coarse(weights, images)[0], self.network_size)
        return self._windows_of(weights, [images])[0]

    def _windows_of(self, weights: Weights, several: Sequence[Array]) -> list[Array]:
        """Return the outputs for images of several sizes, with one loop over all their windows."""
        height, width = self.network_size
        padded = [
            jnp.pad(x, ((0, 0), (0, max(0, height - x.shape[1])), (0, max(0, width - x.shape[2])), (0, 0)))
            for x in several
        ]
        corners = [
            [(y, x) for y in starts(image.shape[1], height, self.window_stride[0])
             for x in starts(image.shape[2], width, self.window_stride[1])]
            for image in padded
        ]  # fmt: skip
        windows = jnp.stack(
            [
                image[:, y : y + height, x : x + width]
                for image, places in zip(padded, corners, strict=True)
                for y, x in places
            ]
        )
        outputs = iter(jax.lax.map(lambda images: self.coarse(weights, images)[0], windows))
        results = []
        for given, image, places in zip(several, padded, corners, strict=True):
            counts = np.zeros((1, *image.shape[1:3], 1), np.float32)
            total: Any = jnp.zeros((*image.shape[:3], self.num_outputs), jnp.float32)
            for y, x in places:
                counts[:, y : y + height, x : x + width] += 1
                total = total.at[:, y : y + height, x : x + width].add(bilinear(next(outputs), self.network_size))
            results.append((total / counts)[:, : given.shape[1], : given.shape[2]])
        return results

    def _at_own_size(self, outputs: Map, batch: Batch) -> Outputs:
        """Resize outputs to each image's `own_size` if the batch has it."""
        if "own_size" not in batch:
            return outputs
        whole = jnp.tile(jnp.array([outputs.shape[1:3]], jnp.int32), (len(outputs), 1))
        part = batch.get("image_size", whole)
        canvas = batch[self.key].shape
        return bilinear_of_parts(outputs, part, batch["own_size"], (canvas[1], canvas[2]))

    def whole_features(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """Return `features` [b, d] and `tokens` [b, patches, d] of images of the network's size; else {}."""
        if batch["image"].shape[1:3] != self.network_size:
            return {}
        found = self.maps(self.backbone(weights)[1], self.normalize(batch["image"]))[1]
        return {"features": found["pooled"], "tokens": found["tokens"][:, found["prefix"] :]}
