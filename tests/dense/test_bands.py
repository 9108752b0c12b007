"""Images of many channels and deep samples, from statistics to a prediction."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.dense.made import CLASSES, config_of, scene
from vit_jax.cli import predict, preview
from vit_jax.data.bands import read_bands, to_bytes
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.segments import SegmentFolder
from vit_jax.train.fit import fit
from vit_jax.types import UserError

RANGES = ((0.0, 4000.0), (100.0, 3000.0), (0.0, 60000.0), (5.0, 2000.0), (0.0, 1000.0))


def stack(seed):
    """Five channels of 16 bits."""
    labels = scene(seed)
    rng = np.random.default_rng([seed, 7])
    return labels, np.stack([rng.integers(0, 900, labels.shape) + 800 * (labels == i % 3) for i in range(5)]).astype(
        np.uint16
    )


def pages(array):
    images = [Image.fromarray(channel) for channel in array]
    file = io.BytesIO()
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:])
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, np.moveaxis(array, 0, 2))
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 6), ("val", 2)):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            labels, array = stack(i)
            (tmp_path / "images" / split / f"{i}.tif").write_bytes(pages(array))
            Image.fromarray(labels).save(tmp_path / "masks" / split / f"{i}.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


@pytest.mark.parametrize("write", [pages, npy])
def test_deep_channels_are_read_as_they_are(write):
    _, array = stack(0)
    np.testing.assert_array_equal(read_bands(write(array), 5), np.moveaxis(array, 0, 2))
    with pytest.raises(UnreadableImage, match="5 channels, expected 4"):
        read_bands(write(array), 4)


def test_interleaved_and_planar_tiffs_are_read_by_tifffile():
    tifffile = pytest.importorskip("tifffile")
    _, array = stack(1)
    for planar, data in (("contig", np.moveaxis(array, 0, 2)), ("separate", array)):
        file = io.BytesIO()
        tifffile.imwrite(file, data, photometric="minisblack", planarconfig=planar)
        np.testing.assert_array_equal(read_bands(file.getvalue(), 5), np.moveaxis(array, 0, 2))


def test_each_channel_is_mapped_by_its_own_range():
    samples = np.array([[[0.0, 50.0, np.nan], [200.0, 150.0, 1e9]]], np.float32)
    found = to_bytes(samples, ((0.0, 200.0), (100.0, 200.0), (0.0, 10.0)))
    np.testing.assert_array_equal(found, [[[0, 0, 0], [255, 128, 255]]])


def test_damaged_and_hostile_files_are_unreadable():
    _, array = stack(0)
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    for data in (pages(array)[:200], npy(array)[:-9], file.getvalue(), b"II*\0", b"", b"x"):
        with pytest.raises(UnreadableImage):
            read_bands(data, 5)


def test_statistics_of_channels_are_those_of_numpy(folder, capsys):
    assert preview.main([f"--bands={folder / 'images' / 'train'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    raw = np.concatenate([np.moveaxis(stack(i)[1], 0, 2).reshape(-1, 5) for i in range(6)]).astype(np.float64)
    for key, expected in (("mean", raw.mean(0)), ("std", raw.std(0)), ("least", raw.min(0)), ("most", raw.max(0))):
        np.testing.assert_allclose(found[key], expected, rtol=1e-9)
    np.testing.assert_allclose(np.array(found["ranges"]).T, np.percentile(raw, (0.5, 99.5), axis=0), rtol=0.05, atol=12)
    assert preview.main([f"--bands={folder / 'images' / 'train'}"]) == 0
    assert "bands=((" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--config=configs/digits.py", "--bands=x"]])
def test_preview_takes_a_config_or_a_folder(flags):
    with pytest.raises(UserError, match="Give --config"):
        preview.main(flags)


def test_five_channels_of_16_bits_train_and_predict(folder, tmp_path, capsys):
    config = config_of(folder, mean=0.3, std=0.3)
    config.steps, config.optim.schedule.warmup_steps = 3, 1
    for source in (config.data.source, config.evals.test.source):
        source.bands = ((0.0, 1700.0),) * 5
    metrics = fit(config, tmp_path / "run")
    assert 0 <= metrics["test/miou"] <= 1
    flags = [f"--model={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", str(folder / "images" / "val")]
    assert predict.main(flags) == 0
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 2


@pytest.mark.parametrize("bands", [(), ((3.0, 3.0),)])
def test_empty_ranges_are_refused(folder, bands):
    with pytest.raises(UserError, match="low below high for each channel"):
        SegmentFolder(str(folder), bands=bands)
