"""Take a loaded model apart for inspection: its attention, its tokens, and gradients with respect to both."""

import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from vit_jax import trees
from vit_jax.inference import Loaded
from vit_jax.tasks.task import Weights, normalize, takes_train
from vit_jax.train.parts import PLAIN
from vit_jax.types import UserError

ByteImages = UInt8[np.ndarray, "b h w c"]
Targets = Int[np.ndarray, "b"]
AT_ONCE = 16  # images in a batch, fewer if their attention is large
BATCH_BYTES = 2**29


class Network:
    """The image encoder of a model reference, in its plain form: without fusion, scan or rematerialization.

    name: the reference. blocks: paths of the modules that sow their output as `out`, in order. Shapes are found without
    computing anything. Every method takes preprocessed uint8 images and returns arrays on the host, in float32.
    """

    def __init__(self, name: str, loaded: Loaded):
        self.name, self.loaded = name, loaded
        module, self.variables = loaded.task.backbone(loaded.weights)
        fields: dict[str, Any] = {key: value for key, value in PLAIN.items() if hasattr(module, key)}
        self.module: Any = module.clone(**fields)
        self._options = {"train": False} if takes_train(type(module).__call__) else {}
        if not (hasattr(loaded.task, "mean") and hasattr(loaded.task, "std")):
            raise UserError(
                f"{name}: {type(loaded.task).__name__} does not say how it normalises images; give it fields mean and std."
            )

    @property
    def kind(self) -> str:
        """The name and class of the network, for messages."""
        return f"{self.name} ({type(self.module).__name__})"

    @property
    def mean_color(self) -> UInt8[np.ndarray, " c"]:
        """The colour that is zero after normalising, used for covered or removed pixels."""
        mean = np.broadcast_to(self.loaded.task.mean, self.loaded.image_shape[2])  # type: ignore[attr-defined]
        return np.round(255 * mean).clip(0, 255).astype(np.uint8)

    # Shapes, found without computing anything.

    @cached_property
    def _shapes(self) -> Mapping[str, Any]:
        images = jax.ShapeDtypeStruct((1, *self.loaded.image_shape), "uint8")
        return jax.eval_shape(lambda v, x: self._apply(v, x)[1], self.variables, images)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The paths of the blocks, in order."""
        found = trees.flatten(self._shapes.get("intermediates", {}))
        return in_order(name.removesuffix("/out") for name in found if name.endswith("/out"))

    @cached_property
    def _attention(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        found = trees.flatten(self._shapes.get("attention", {}))
        return {name: found[name] for name in in_order(found)}

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return self._places[0]

    @cached_property
    def prefix(self) -> int:
        """The number of tokens before the patches."""
        return self._places[1]

    @cached_property
    def _places(self) -> tuple[tuple[int, int], int]:
        if not hasattr(self.module, "features"):
            raise UserError(
                f"{self.kind} has no method features(images), so its tokens cannot be placed on the image; add one that "
                "returns tokens, grid and prefix as vit.ViT does, or use --method=occlusion."
            )
        images, found = jax.ShapeDtypeStruct((1, *self.loaded.image_shape), "uint8"), {}
        jax.eval_shape(lambda v, x: found.update(self._features(v, x)), self.variables, images)
        return (int(found["grid"][0]), int(found["grid"][1])), int(found["prefix"])

    @cached_property
    def centers(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of the patch centres, in pixels; patches may overlap."""
        found = []
        for axis, (size, count) in enumerate(zip(self.loaded.image_shape, self.grid, strict=False)):
            step: float = size / count
            overlapping = getattr(self.module, "stride", None)
            if overlapping is not None and getattr(self.module, "stem", None) is None:
                step = overlapping if isinstance(overlapping, int) else overlapping[axis]
            found.append((size - step * (count - 1)) / 2 + step * np.arange(count))
        return found[0], found[1]

    def patch_at(self, point: tuple[float, float]) -> tuple[int, int]:
        """Return row and column of the patch nearest to a point, (row, column) as fractions of the height and width."""
        sizes = self.loaded.image_shape[:2]
        row, column = (int(np.abs(c - p * s).argmin()) for c, p, s in zip(self.centers, point, sizes, strict=True))
        return row, column

    def to_pixels(self, found: Float[np.ndarray, "b rows cols"]) -> Float[np.ndarray, "b h w"]:
        """Resize maps of patches to pixels, linearly between patch centres; maps in pixels are returned unchanged."""
        sizes = self.loaded.image_shape[:2]
        if found.shape[1:] == sizes:
            return found
        for axis, (centers, size) in enumerate(zip(self.centers, sizes, strict=True), start=1):
            at = np.interp(np.arange(size) + 0.5, centers, np.arange(len(centers)))
            low = np.minimum(at.astype(int), max(len(centers) - 2, 0))
            high = np.minimum(low + 1, len(centers) - 1)
            share = (at - low).reshape(-1, *[1] * (2 - axis))
            found = np.take(found, low, axis) * (1 - share) + np.take(found, high, axis) * share
        return found

    @property
    def num_tokens(self) -> int:
        """The total number of tokens."""
        return self.prefix + self.grid[0] * self.grid[1]

    @cached_property
    def heads(self) -> int:
        """The number of attention heads in each block."""
        return next(shape.shape[1] for name, shape in self._attention.items() if shape.shape[2] > 1)

    @property
    def reads_prefix(self) -> bool:
        """Whether the head reads the first token (the first two of a distilled model) instead of the patches."""
        return getattr(self.module, "pool", "gap") == "tok"

    # Requirements of methods.

    def need_attention(self, what: str) -> None:
        """Raise UserError unless each block has self-attention over all tokens whose weights fit into memory."""
        square = [x for x in self._attention.values() if x.shape[2] > 1]
        if not square:
            raise UserError(
                f"{self.kind} has no attention, so there is no {what}; use gradcam, occlusion, components or similarity."
            )
        wanted = (1, square[0].shape[1], self.num_tokens, self.num_tokens)
        if any(shape.shape[0] > 1 for shape in square):
            raise UserError(
                f"{self.kind} has attention within windows of {square[0].shape[2]} tokens, but {what} needs attention "
                "of all tokens to all: use gradcam, occlusion, components or similarity."
            )
        wrong = next((x.shape for x in square if x.shape != wanted), None)
        if wrong or len(square) != len(self.blocks):
            raise UserError(
                f"{self.kind} has attention of shape {wrong or square[0].shape} in {len(square)} of {len(self.blocks)} blocks; "
                f"{what} needs {wanted[2:]}, of all tokens to all, in each: use gradcam or occlusion."
            )
        size, memory = self._bytes, memory_bytes()
        if size > memory:
            height, width = self.loaded.image_shape[:2]
            raise UserError(
                f"The attention of {self.kind} for one image of {height} x {width} pixels takes {size / 1e9:,.0f} GB, and "
                f"there are {memory / 1e9:,.0f} GB; use a model of smaller images, or gradcam or occlusion."
            )

    def need_classes(self, what: str) -> None:
        """Raise UserError if the model has no trained outputs to explain."""
        if self.loaded.has_untrained_head:
            lacks = "an untrained head" if self.loaded.has_head else "no head for classes of images"
            raise UserError(
                f"{self.name} has {lacks}, so there is no class for {what} to explain; fine-tune it first "
                "(configs/finetune.py), or use attention, rollout, components or similarity."
            )

    def need_tokens(self, what: str) -> None:
        """Raise UserError if the last tokens cannot be placed on the image."""
        if self.grid[0] * self.grid[1] < 2:
            raise UserError(f"{self.kind} has a single patch, which leaves nothing for {what} to compare.")

    # Computations.

    def probs(self, images: ByteImages) -> Float[np.ndarray, "b classes"]:
        """Return the probability of each class, or the numbers of a regression."""
        outputs = [self.loaded(x) for x in in_batches(images, min(self._at_once, len(images)))]
        return np.concatenate([found["probs" if "probs" in found else "values"] for found in outputs])[: len(images)]

    def attention(self, reduce: Callable[..., Any], images: ByteImages) -> Any:
        """Return reduce([weights of each block, [b, heads, n, n]], weights of the pooling [b, heads, 1, n] or None)."""

        def run(variables: Weights, images: Array) -> Any:
            return reduce(*self._split(self._apply(variables, images)[1]["attention"]))

        return self._batched(run, images)

    def attention_of(self, weights: Weights, images: Array) -> list[Array]:
        """Return the weights [b, heads, n, n] of each block, inside a traced program."""
        variables = self.loaded.task.backbone(weights)[1]
        return self._split(self._apply(variables, images)[1]["attention"])[0]

    def attention_gradients(self, reduce: Callable[..., Any], images: ByteImages, targets: Targets) -> Any:
        """Return reduce(weights, pooling, and the gradients of the target's output in both); see attention."""

        def run(variables: Weights, images: Array, targets: Array) -> Any:
            def score(offsets: Any) -> tuple[Array, Any]:
                outputs, sown = self._apply({**variables, "perturbations": offsets}, images)
                return picked(outputs, targets).sum(), sown["attention"]

            like = jax.eval_shape(lambda v, x: self._apply(v, x)[1]["attention"], variables, images)
            gradients, weights = jax.grad(score, has_aux=True)(jax.tree.map(jnp.zeros_like, like))
            return reduce(*self._split(weights), *self._split(gradients))

        return self._batched(run, images, targets)

    def token_gradients(self, reduce: Callable[..., Any], block: str, images: ByteImages, targets: Targets) -> Any:
        """Return reduce(output of a block, gradient of the target's output in it), [b, n, d] or maps [b, h, w, d]."""

        def run(variables: Weights, images: Array, targets: Array) -> Any:
            def score(offset: Array) -> tuple[Array, Any]:
                kept = []

                def added(
                    following: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
                ) -> Any:
                    out = following(*args, **kwargs)
                    if context.method_name != "__call__" or "/".join(context.module.path) != block:
                        return out
                    kept.append(out)
                    return out + offset.astype(out.dtype)

                with nn.intercept_methods(added):
                    outputs, _ = self._apply(variables, images)
                return picked(outputs, targets).sum(), kept[0].astype(jnp.float32)

            shape = trees.flatten(self._shapes["intermediates"])[f"{block}/out"].shape[1:]
            gradient, tokens = jax.grad(score, has_aux=True)(jnp.zeros((len(images), *shape)))
            return reduce(tokens, gradient)

        return self._batched(run, images, targets)

    def patch_features(self, images: ByteImages) -> Float[np.ndarray, "b rows cols d"]:
        """Return the encoded tokens of the patches."""

        def run(variables: Weights, images: Array) -> Array:
            tokens = self._features(variables, images)["tokens"][:, self.prefix :]
            return tokens.reshape(len(images), *self.grid, -1).astype(jnp.float32)

        return self._batched(run, images)

    def read(self, matrix: Float[Array, "b n n"], pooling: Float[Array, "b 1 p"] | None) -> Float[Array, "b rows cols"]:
        """Return the rows of a token-by-token matrix that the head reads, at the patches: the map of an image.

        These are the row of the class token, the mean of both class tokens of a distilled model, the mean over the
        patches if they are averaged, or their mean weighted by the attention pooling.
        """
        if pooling is not None:
            row = (pooling @ matrix[:, self.prefix :])[:, 0]
        elif self.reads_prefix:
            row = matrix[:, : 2 if getattr(self.module, "distilled", False) else 1].mean(axis=1)
        else:
            row = matrix[:, self.prefix :].mean(axis=1)
        return row[:, self.prefix :].reshape(-1, *self.grid)

    def _apply(self, variables: Weights, images: Array) -> tuple[Array, Mapping[str, Any]]:
        x = normalize(images, self.loaded.task.mean, self.loaded.task.std)  # type: ignore[attr-defined]
        outputs, sown = self.module.apply(variables, x, **self._options, mutable=["attention", "intermediates"])
        return outputs.astype(jnp.float32), sown

    def _features(self, variables: Weights, images: Array) -> dict[str, Any]:
        x = normalize(images, self.loaded.task.mean, self.loaded.task.std)  # type: ignore[attr-defined]
        return self.module.apply(variables, x, method=lambda m, x: m.features(x))

    def _split(self, collection: Mapping[str, Any]) -> tuple[list[Array], Array | None]:
        """Return the weights of the blocks in order, and of the pooling."""
        flat = {name: x.astype(jnp.float32) for name, x in trees.flatten(collection).items()}
        blocks = [flat[name] for name, shape in self._attention.items() if shape.shape[2] > 1]
        return blocks, next((flat[name] for name, shape in self._attention.items() if shape.shape[2] == 1), None)

    @cached_property
    def _bytes(self) -> int:
        """Bytes of an image's attention with its gradients, and of its block outputs."""
        return 8 * sum(leaf.size for leaf in jax.tree.leaves(self._shapes))

    @property
    def _at_once(self) -> int:
        """Images in a batch."""
        return max(1, min(AT_ONCE, BATCH_BYTES // max(self._bytes, 1)))

    def _batched(self, run: Callable[..., Any], images: ByteImages, *rest: np.ndarray) -> Any:
        size, jitted = min(self._at_once, len(images)), jax.jit(run)
        parts = [
            jax.device_get(jitted(self.variables, *batch))
            for batch in zip(*(in_batches(x, size) for x in (images, *rest)), strict=True)
        ]
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(images)], *parts)


def in_batches(x: np.ndarray, size: int) -> list[np.ndarray]:
    """Split the rows into batches of one size; the last is padded with copies of its last row."""
    x = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, axis=0)])
    return [x[start : start + size] for start in range(0, len(x), size)]


def in_order(names: Any) -> tuple[str, ...]:
    """Sort names with their numbers as numbers, so that block_10 follows block_9."""
    return tuple(sorted(names, key=lambda name: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name)]))


def picked(outputs: Float[Array, "b classes"], targets: Int[Array, "b"]) -> Float[Array, "b"]:
    """Return the output of each image's target."""
    return jnp.take_along_axis(outputs, targets.reshape(-1, 1), axis=1)[:, 0]


def memory_bytes() -> int:
    """Return the memory of a device, or of this machine if its CPUs are the devices."""
    stats = jax.devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
