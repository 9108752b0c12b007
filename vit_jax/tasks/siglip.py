"""Sigmoid loss over all pairs of images and texts of a batch (SigLIP, arXiv:2303.15343)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vit_jax.sharding import BATCH_AXES
from vit_jax.tasks.task import Aux, Batch, Spec
from vit_jax.tasks.towers import Towers, check_batch, same_text
from vit_jax.types import Params, Rng, Units


@dataclasses.dataclass(frozen=True)
class Siglip(Towers):
    """Classify each pair of an image and a text: the image's own text or not (equation 1).

    Products are scaled by exp(log_scale) and shifted by a learned bias, which start at `scale` and `bias`. A text is
    not a negative for images whose own caption equals it. Products are computed for `chunk` texts at a time, and
    several devices pass their texts around (section 3.3), so that the whole matrix never exists; the loss covers the
    global batch.
    """

    scale: float = 10.0
    bias: float = -10.0
    chunk: Units = 1024

    @property
    def first_log_scale(self) -> float:
        """See Towers."""
        return math.log(self.scale)

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        return {**super().init(rng, spec), "bias": jnp.asarray(self.bias, jnp.float32)}

    def loss_of(self, params: Params, encoded: dict[str, Array], batch: Batch) -> tuple[Float[Array, ""], Aux]:
        """See Towers."""
        check_batch("Siglip", len(batch["text"]))
        scale, bias = jnp.exp(params["log_scale"]), params["bias"]
        loss = sigmoid_loss(encoded["image"], encoded["text"], batch["text"], scale, bias, self.chunk)
        positive = (encoded["image"] * encoded["text"]).sum(axis=1).mean()
        return loss, Aux({"scale": scale, "bias": bias, "similarity": positive})

    def match(self, params: Params, image: Float[Array, "b d"], text: Float[Array, "c d"]) -> Float[Array, "b c"]:
        """Return the probability of each text for each image, independent of the other texts."""
        return jax.nn.sigmoid(jnp.exp(params["log_scale"]) * image @ text.T + params["bias"])


def sigmoid_loss(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    ids: Int[Array, "b n"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    chunk: int,
) -> Float[Array, ""]:
    """Return the sum over all pairs of -log sigmoid(+-(scale * image . text + bias)), divided by the number of images."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    if not axes:
        return _summed(image, ids, text, ids, scale, bias, chunk, own=True) / len(image)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    sharded, whole = PartitionSpec(axes), PartitionSpec()

    def of_device(image, text, ids, scale, bias):
        total = _summed(image, ids, text, ids, scale, bias, chunk, own=True)

        def turn(carry, _):
            total, others, other_ids = carry
            ring = [(i, (i + 1) % devices) for i in range(devices)]
            others, other_ids = (jax.lax.ppermute(x, axes, ring) for x in (others, other_ids))
            total += _summed(image, ids, others, other_ids, scale, bias, chunk, own=False)
            return (total, others, other_ids), None

        (total, _, _), _ = jax.lax.scan(turn, (total, text, ids), None, length=devices - 1)
        return jax.lax.psum(total, axes)

    specs = (sharded, sharded, sharded, whole, whole)
    total = jax.shard_map(of_device, in_specs=specs, out_specs=whole, check_vma=False)(image, text, ids, scale, bias)
    return total / len(image)


def _summed(image, ids, others, other_ids, scale, bias, chunk: int, own: bool) -> Float[Array, ""]:
    """Return the sum over all pairs of images and `others`; with `own`, the i-th text belongs to the i-th image.

    The products of each chunk of texts are recomputed in the backward pass.
    """
    size = next(size for size in range(min(chunk, len(others)), 0, -1) if len(others) % size == 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def part(start: Array) -> Float[Array, ""]:
        some, some_ids = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in (others, other_ids))
        logits = scale * image @ some.T + bias
        is_own = (jnp.arange(len(image))[:, None] == start + jnp.arange(size)[None]) & own
        losses = -jax.nn.log_sigmoid(jnp.where(is_own, logits, -logits))
        return jnp.where(is_own | ~same_text(ids, some_ids), losses, 0.0).sum()

    return jax.lax.map(part, jnp.arange(0, len(others), size)).sum()
