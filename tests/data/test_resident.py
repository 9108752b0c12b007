import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import losses, rows, run
from tests.data.test_pipeline import Numbered
from vit_jax.data.examples import Array
from vit_jax.data.pipeline import TrainData
from vit_jax.data.resident import ResidentData
from vit_jax.data.sources.fake import Fake
from vit_jax.data.transforms.device_ops import DEVICE_OPS, flip, pad_crop
from vit_jax.data.transforms.preprocess import OPS
from vit_jax.types import UserError


def test_the_order_is_that_of_the_host():
    host = TrainData(Numbered(30, bad=[3, 4]), "", 8, seed=5, repeats=2, max_unreadable=0.1)
    here = ResidentData(Numbered(30, bad=[3, 4]), "", 8, seed=5, repeats=2, max_unreadable=0.1)
    for (step, batch), (same, places) in zip(host.from_step(3, 20), here.from_step(3, 20), strict=True):
        assert step == same
        assert set(places) == {"index"}
        for key in batch:
            np.testing.assert_array_equal(here.device_arrays[key][places["index"]], batch[key], err_msg=key)
    assert here.unreadable == host.unreadable


IMAGES = np.random.default_rng(0).integers(0, 256, (500, 7, 9, 3), np.uint8)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize(("size", "padding"), [((7, 9), 2), (5, 0), ((10, 8), 3), (4, 8)])
def test_windows_are_cut_from_the_padded_image_and_all_occur(size, padding, mode):
    height, width = (size, size) if isinstance(size, int) else size
    image = IMAGES[0]
    padded = np.pad(image, [(padding, padding)] * 2 + [(0, 0)], mode="reflect" if mode == "reflect" else "constant")
    windows = {
        padded[top : top + height, left : left + width].tobytes()
        for top in range(7 + 2 * padding - height + 1)
        for left in range(9 + 2 * padding - width + 1)
    }
    many = jnp.asarray(np.repeat(image[None], 40 * len(windows), axis=0))
    cut = np.asarray(jax.jit(pad_crop(size, padding, mode))(jax.random.key(0), many))
    assert cut.dtype == np.uint8
    assert {one.tobytes() for one in cut} == windows


def test_half_of_the_images_are_mirrored():
    flipped = np.asarray(jax.jit(flip())(jax.random.key(0), jnp.asarray(IMAGES)))
    same = (flipped == IMAGES).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~same], IMAGES[~same][:, :, ::-1])
    assert 200 < same.sum() < 300


def test_operations_have_the_arguments_of_the_host():
    data = ResidentData(Fake(20, (9, 12), 3, 4), "resize(8)|pad_crop(6, 1, mode='zero')|flip", 4, seed=0)
    assert data.spec.layout == {"image": Array((6, 6, 3), "uint8"), "label": Array((), "int32")}
    assert data.device_arrays["image"].shape == (20, 8, 8, 3)
    ((_, batch),) = data.from_step(0, 1)
    arrays, here = jax.tree.map(jnp.asarray, (data.device_arrays, batch))
    fetched = data.fetch(arrays, here, jax.random.key(0))
    assert {key: (x.shape, x.dtype) for key, x in fetched.items()} == {
        "image": ((4, 6, 6, 3), "uint8"),
        "label": ((4,), "int32"),
    }
    np.testing.assert_array_equal(fetched["label"], data.device_arrays["label"][batch["index"]])
    assert set(DEVICE_OPS) < set(OPS)


@pytest.mark.parametrize(
    ("preprocess", "says"),
    [
        ("resize(8)|inception_crop(4)", "'inception_crop' as operation 2.*flip, pad_crop.*on the devices"),
        ("flip|resize(8)", "'resize' as operation 2"),
        ("flop", "did you mean flip"),
        ("pad_crop(40, 1)", "too small|cannot cut"),
    ],
)
def test_what_the_devices_cannot_do_is_told(preprocess, says):
    with pytest.raises(UserError, match=says):
        ResidentData(Fake(20, 8, 3, 4), preprocess, 4, seed=0)


@pytest.mark.parametrize(
    "flag",
    ["--config.mesh={'data': 2, 'fsdp': 2}", pytest.param("--config.parallel=pmap", marks=pytest.mark.torture)],
)
def test_a_run_is_the_same_on_1_and_on_4_devices(flag, tmp_path):
    flags = ("--config.steps=8", "--config.data.resident=True")
    run(tmp_path / "one", *flags)
    run(tmp_path / "four", *flags, flag, devices=4)
    one = losses(tmp_path / "one")
    assert len(set(one)) > 5
    np.testing.assert_allclose(losses(tmp_path / "four"), one, rtol=1e-4)
    assert rows(tmp_path / "one")[-1]["test/num_examples"] == 360
