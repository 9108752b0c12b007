import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import torch
from vit_jax.models.vit import ViT
from vit_jax.tasks.mae import Mae
from vit_jax.tasks.task import normalize
from vit_jax.types import UserError

RNG = np.random.default_rng(0)
SPEC = {"image": jax.ShapeDtypeStruct((8, 12, 3), "uint8")}
IMAGES = jnp.asarray(RNG.integers(0, 256, (4, 8, 12, 3), np.uint8))


def task(**options):
    model = ViT(num_classes=0, width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=4, posemb="sincos2d")
    return Mae(model, decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5, **options)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: task().init(jax.random.key(0), SPEC))()


def test_the_loss_is_the_error_of_the_masked_patches(params, agrees):
    """The loss of arXiv:2111.06377 as its authors compute it, in torch float64 from the same predictions."""
    batch = task().prepare({"image": IMAGES}, jax.random.key(1), {})
    loss, _ = task().loss(params, {}, batch, jax.random.key(2))
    predicted, masked = (np.asarray(x) for x in task().reconstruct(params, batch, jax.random.key(2)))
    assert masked.sum(axis=1).tolist() == [3] * 4
    images = torch.tensor(np.asarray(normalize(IMAGES, 0.5, 0.5), np.float64))
    patches = images.reshape(4, 2, 4, 3, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(4, 6, 48)
    targets = (patches - patches.mean(dim=-1, keepdim=True)) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    errors = ((torch.tensor(predicted.astype(np.float64)) - targets) ** 2).mean(dim=-1)
    mask = torch.tensor(masked.astype(np.float64))
    agrees("MAE: loss", "torch float64", loss, ((errors * mask).sum() / mask.sum()).item(), 1e-6)


def test_every_patch_is_masked_equally_often(params):
    batches = [task().prepare({"image": jnp.tile(IMAGES, (64, 1, 1, 1))}, jax.random.key(i), {}) for i in range(4)]
    first = np.concatenate([np.asarray(batch["order"])[:, :3] for batch in batches])
    shares = np.bincount(first.ravel(), minlength=6) / len(first)
    np.testing.assert_allclose(shares, 0.5, atol=0.08)


def test_the_encoder_never_sees_masked_patches(params):
    batch = task().prepare({"image": IMAGES}, jax.random.key(1), {})
    order = np.asarray(batch["order"])
    images = np.array(IMAGES)
    for row in range(4):  # change the masked patches of the image alone, and keep the targets
        for patch in order[row, 3:]:
            i, j = divmod(int(patch), 3)
            images[row, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = 7
    model = task().model

    def encoded(pixels):
        def visible(model, x):
            tokens = model.embed(x)
            return model.encode(jnp.take_along_axis(tokens[:, 1:], batch["order"][:, :3, None], axis=1))

        return model.apply({"params": params["backbone"]}, normalize(jnp.asarray(pixels), 0.5, 0.5), method=visible)

    np.testing.assert_array_equal(encoded(images), encoded(IMAGES))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0"),
        ({"mask_ratio": 0.95}, "mask_ratio=0.95 of 2 x 3 patches leaves 0 visible"),
    ],
)
def test_mask_ratios_that_leave_nothing_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(task(), **options).init(jax.random.key(0), SPEC)
