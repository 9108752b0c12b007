"""Mix images of a batch with each other, and their targets in the same shares; chosen by `task.mix`.

Mixing sees the global batch, so it is the same on any number of devices.
"""

import abc
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, UInt8

from vit_jax.types import Rng, UserError

Mode = Literal["batch", "pair", "element"]
Partner = Literal["roll", "flip"]
Targets = Float[Array, "b classes"]
Shares = Float[Array, "b"]
# The image's own share of each pixel.
Weights = Float[Array, "b h w"]


class Mix(abc.ABC):
    """(rng, images uint8 [b, h, w, c], targets [b, classes]) -> both mixed, images as float32 in [0, 255]."""

    partner: Partner

    @abc.abstractmethod
    def weights(self, rng: Rng, shape: tuple[int, int, int]) -> Float[Array, "b #h #w"]:
        """Return the image's own share of each pixel, for a batch of shape (b, h, w)."""

    def __call__(
        self, rng: Rng, images: UInt8[Array, "b h w c"], targets: Targets
    ) -> tuple[Float[Array, "b h w c"], Targets]:
        size, height, width, _ = images.shape
        weights = self.weights(rng, (size, height, width))
        return mixed(images, weights, self.partner), mixed(targets, weights.mean(axis=(1, 2)), self.partner)


def mixed(own: Array, weights: Array, partner: Partner) -> Float[Array, "..."]:
    """Return weights * own + (1 - weights) * partner; see Mixup for `partner`."""
    # Move images between devices as bytes, before the conversion.
    other = jnp.roll(own, 1, axis=0) if partner == "roll" else jnp.flip(own, axis=0)
    weights = weights.reshape(weights.shape + (1,) * (own.ndim - weights.ndim))
    weights = jnp.broadcast_to(weights, own.shape)
    return weights * own.astype(jnp.float32) + (1.0 - weights) * other.astype(jnp.float32)


def per_example(drawn: Array, mode: Mode, size: int) -> Array:
    """Spread `num_draws` draws over a batch: one for all, one per pair at mirrored places, or one per example."""
    if mode == "pair":
        return jnp.concatenate([drawn, drawn[::-1]])
    return jnp.broadcast_to(drawn, (size,))


def num_draws(mode: Mode, size: int) -> int:
    """Return the number of draws for a batch of `size`; raises UserError if it cannot be paired."""
    if mode == "pair" and size % 2:
        raise UserError(f"task.mix.mode='pair' needs an even batch; found {size} images.")
    return {"batch": 1, "pair": size // 2, "element": size}[mode]


def boxes(shares: Shares, centers: Float[Array, "2 b"], size: tuple[int, int]) -> Weights:
    """Return 1 outside and 0 inside a box in each image: 1 - share of its area around a centre, clipped at the border.

    centers are (row, column) as shares of the height and width; arXiv:1905.04899, equation 2.
    """

    def outside(center: Shares, length: int) -> Bool[Array, "b length"]:
        side = jnp.floor(length * jnp.sqrt(1.0 - shares)).astype(jnp.int32)
        middle = jnp.floor(center * length).astype(jnp.int32)
        places = rearrange(jnp.arange(length), "length -> 1 length")
        low, high = rearrange(middle - side // 2, "b -> b 1"), rearrange(middle + (side + 1) // 2, "b -> b 1")
        return (places < low) | (places >= high)

    rows, columns = outside(centers[0], size[0]), outside(centers[1], size[1])
    return (rows[:, :, None] | columns[:, None, :]).astype(jnp.float32)


def _check(mode: Mode, partner: Partner, **alphas: float) -> None:
    for name, alpha in alphas.items():
        if alpha <= 0:
            raise UserError(
                f"task.mix.{name}={alpha}; expected a number above 0, the parameter of a Beta distribution."
            )
    if mode == "pair" and partner != "flip":
        raise UserError(f"task.mix.mode='pair' mixes mirrored examples; found partner={partner!r}, expected 'flip'.")


@dataclasses.dataclass(frozen=True)
class Mixup(Mix):
    """Weighted means of two images (arXiv:1710.09412), with a share from Beta(alpha, alpha).

    mode: one share for the "batch", for each "pair" or for each "element". partner: the previous image ("roll") or the
    image at the mirrored place in the batch ("flip"). own_most: the image's own share is at least a half, as in
    big_vision.
    """

    alpha: float = 0.2
    mode: Mode = "batch"
    partner: Partner = "roll"
    own_most: bool = True

    def __post_init__(self):
        _check(self.mode, self.partner, alpha=self.alpha)

    def weights(self, rng: Rng, shape: tuple[int, int, int]) -> Float[Array, "b 1 1"]:
        """See Mix."""
        shares = jax.random.beta(rng, self.alpha, self.alpha, (num_draws(self.mode, shape[0]),))
        if self.own_most:
            shares = jnp.maximum(shares, 1.0 - shares)
        return per_example(shares, self.mode, shape[0]).reshape(-1, 1, 1)


@dataclasses.dataclass(frozen=True)
class CutMix(Mix):
    """Paste a box of another image (arXiv:1905.04899), with an area of 1 - a draw from Beta(alpha, alpha).

    Targets use the visible share, since the border may clip the box. mode, partner: see Mixup.
    """

    alpha: float = 1.0
    mode: Mode = "batch"
    partner: Partner = "flip"

    def __post_init__(self):
        _check(self.mode, self.partner, alpha=self.alpha)

    def weights(self, rng: Rng, shape: tuple[int, int, int]) -> Weights:
        """See Mix."""
        rng_share, *rng_centers = jax.random.split(rng, 3)
        draws = (num_draws(self.mode, shape[0]),)
        shares = per_example(jax.random.beta(rng_share, self.alpha, self.alpha, draws), self.mode, shape[0])
        centers = [per_example(jax.random.uniform(r, draws), self.mode, shape[0]) for r in rng_centers]
        return boxes(shares, jnp.stack(centers), shape[1:])


@dataclasses.dataclass(frozen=True)
class MixupOrCutMix(Mix):
    """Mixup or cutmix, chosen at random, as in DeiT (arXiv:2012.12877, section 6).

    Images are mixed with probability `prob`, and then by cutmix with probability `cutmix_prob`. mode, partner: see
    Mixup.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    cutmix_prob: float = 0.5
    mode: Mode = "batch"
    partner: Partner = "flip"

    def __post_init__(self):
        _check(self.mode, self.partner, mixup_alpha=self.mixup_alpha, cutmix_alpha=self.cutmix_alpha)
        for name in ("prob", "cutmix_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"task.mix.{name}={getattr(self, name)}; expected a probability.")

    def weights(self, rng: Rng, shape: tuple[int, int, int]) -> Weights:
        """See Mix."""
        size, draws = shape[0], num_draws(self.mode, shape[0])
        rng_mixup, rng_cutmix, rng_any, rng_cut = jax.random.split(rng, 4)
        mixup = Mixup(self.mixup_alpha, self.mode, self.partner, own_most=False).weights(rng_mixup, shape)
        cutmix = CutMix(self.cutmix_alpha, self.mode, self.partner).weights(rng_cutmix, shape)
        any_at_all, cut = (
            per_example(jax.random.bernoulli(r, p, (draws,)), self.mode, size).reshape(-1, 1, 1)
            for r, p in ((rng_any, self.prob), (rng_cut, self.cutmix_prob))
        )
        mixup = jnp.broadcast_to(mixup, cutmix.shape)
        return jnp.where(
            jnp.broadcast_to(any_at_all, cutmix.shape),
            jnp.where(jnp.broadcast_to(cut, cutmix.shape), cutmix, mixup),
            1.0,
        )


KIND = Mix
