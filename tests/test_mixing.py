import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peers
from vit_jax.tasks.mixing import CutMix, Mix, Mixup, MixupOrCutMix, boxes, mixed
from vit_jax.types import UserError

torch = peers.torch
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.integers(0, 256, (8, 12, 10, 3), np.uint8))
TARGETS = jax.nn.one_hot(jnp.arange(8), 8)
KEY = jax.random.key(7)
MIXES = [
    kind(mode=mode, partner="flip") for kind in (Mixup, CutMix, MixupOrCutMix) for mode in ("batch", "pair", "element")
]


@dataclasses.dataclass(frozen=True)
class Given(Mix):
    """A mix with given weights."""

    given: jax.Array
    partner: str = "roll"

    def weights(self, rng, shape):
        return self.given


def test_mixup_equals_big_visions_formula_for_the_same_draw(agrees):
    share = 0.73
    images, targets = Given(jnp.full((8, 1, 1), share))(KEY, IMAGES, TARGETS)
    for ours, things in ((images, np.asarray(IMAGES, np.float64)), (targets, np.asarray(TARGETS, np.float64))):
        expected = share * things + (1 - share) * np.roll(things, 1, axis=0)
        agrees("mixup, same draw", "numpy float64 after big_vision", ours, expected, 1e-6)


@pytest.mark.parametrize("cutmix", [False, True])
def test_mixup_and_cutmix_equal_timm_for_the_same_draws(cutmix, agrees, monkeypatch):
    from timm.data.mixup import Mixup as Timm

    theirs = Timm(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=8)
    share, center = np.float64(0.6), (5, 7)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (share, cutmix))
    draws = iter(center)
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(draws))
    pixels = torch.tensor(np.moveaxis(np.array(IMAGES, np.float32), 3, 1))
    expected, expected_targets = theirs(pixels, torch.arange(8))

    shares = jnp.full((8,), share, jnp.float32)
    places = (jnp.asarray(center, jnp.float32) + 0.5) / jnp.asarray([12.0, 10.0])
    weights = boxes(shares, jnp.tile(places[:, None], (1, 8)), (12, 10)) if cutmix else shares.reshape(-1, 1, 1)
    images, targets = Given(weights, "flip")(KEY, IMAGES, TARGETS)
    name, reference = "cutmix" if cutmix else "mixup", f"timm {peers.timm.__version__}"
    agrees(f"{name}: images", reference, images, np.moveaxis(expected.numpy(), 1, 3), 1e-6)
    agrees(f"{name}: targets", reference, targets, expected_targets, 1e-6)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_an_image_and_its_targets_are_mixed_in_the_same_shares(mix):
    # An image that is the number of its own place tells how much of each image it is made of.
    images = jnp.broadcast_to(jnp.asarray([0, 255], jnp.uint8).reshape(2, 1, 1, 1), (2, 16, 16, 1))
    for seed in range(5):
        out, targets = mix(jax.random.key(seed), images, jnp.eye(2))
        np.testing.assert_allclose(out.mean(axis=(1, 2, 3)) / 255, targets[:, 1], atol=1e-5)
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_the_mode_says_who_shares_a_draw(mix):
    shares = np.asarray(mix.weights(KEY, (8, 16, 16)).mean(axis=(1, 2)))
    distinct = len(set(shares.tolist()))
    if mix.mode == "batch":
        assert distinct == 1
    elif mix.mode == "pair":
        np.testing.assert_array_equal(shares, shares[::-1])
        assert 1 < distinct <= 4
    else:
        assert distinct > 4


def draw(mix, n=4096):
    return np.asarray(mix.weights(KEY, (n, 16, 16)).mean(axis=(1, 2)))


def test_shares_of_mixup_are_beta_distributed():
    from scipy import stats

    shares = draw(Mixup(0.4, mode="element", own_most=False))
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    assert draw(Mixup(0.4, mode="element")).min() >= 0.5


def test_cutmix_keeps_as_much_as_it_says_on_average():
    # Boxes about a uniform centre are cut off at the border. With side s = sqrt(1 - share) of the image, the part inside is
    # (s - s^2 / 4)^2 on average over centres; shares are uniform for alpha = 1, so 1 - share = u is too.
    u = (np.arange(10_000) + 0.5) / 10_000
    inside = np.mean((np.sqrt(u) - u / 4) ** 2)
    assert abs(draw(CutMix(mode="element")).mean() - (1 - inside)) < 0.02


def test_the_switch_chooses_as_often_as_it_says():
    mix = MixupOrCutMix(prob=0.75, cutmix_prob=0.2, mode="element")
    weights = np.asarray(mix.weights(KEY, (4096, 16, 16)))
    inner = weights.reshape(4096, -1)
    untouched = (inner == 1).all(axis=1)
    cut = ~untouched & (inner.min(axis=1) == 0) & np.isin(inner, (0, 1)).all(axis=1)
    # A box of less than a pixel leaves the image as it is, in about 1 of 256 / 4 cases.
    assert abs(untouched.mean() - 0.25) < 0.03
    assert abs(cut.mean() - 0.15) < 0.03


def test_the_partner_is_the_one_before_or_at_the_mirrored_place():
    np.testing.assert_array_equal(mixed(jnp.arange(4.0), jnp.zeros(4), "roll"), [3, 0, 1, 2])
    np.testing.assert_array_equal(mixed(jnp.arange(4.0), jnp.zeros(4), "flip"), [3, 2, 1, 0])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mixup(alpha=0.0), "alpha=0.0"),
        (lambda: Mixup(mode="pair"), "expected 'flip'"),
        (lambda: MixupOrCutMix(prob=1.5), "prob=1.5"),
        (lambda: CutMix(mode="pair").weights(KEY, (3, 4, 4)), "needs an even batch; found 3"),
    ],
)
def test_what_cannot_be_mixed_is_told(make, says):
    with pytest.raises(UserError, match=says):
        make()
