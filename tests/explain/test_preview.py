"""Facts of a folder with every kind of oddity equal an independent count."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.conftest import TINY_FLAGS
from vit_jax.__main__ import main
from vit_jax.config.load import load
from vit_jax.data.sources.folder import Folder
from vit_jax.explain.preview import feed, open_config, statistics

GOOD = ["a$/grey.png", "a$/cmyk.jpg", "a$/rotated.jpg", "a$/tiny.bmp", "b<i>/deep/er/rgba.png", "b<i>/UPPER.WEBP"]


@pytest.fixture
def odd(tmp_path) -> Path:
    """Grey, CMYK, turned by EXIF, tiny, transparent, upper-case, hidden, of unknown endings, broken, and not in a class."""
    rng = np.random.default_rng(0)
    for folder in ("a$", "b<i>/deep/er", "b<i>/.hidden"):
        (tmp_path / folder).mkdir(parents=True)

    def picture(*shape, mode="RGB"):
        return Image.fromarray(rng.integers(0, 256, shape, np.uint8)).convert(mode)

    picture(9, 7, mode="L").save(tmp_path / "a$/grey.png")
    picture(8, 8, 3, mode="CMYK").save(tmp_path / "a$/cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(6, 12, 3).save(tmp_path / "a$/rotated.jpg", exif=exif)
    picture(1, 1, 3).save(tmp_path / "a$/tiny.bmp")
    picture(10, 11, 3).convert("RGB").save(tmp_path / "b<i>/deep/er/rgba.png")
    picture(5, 6, 3).save(tmp_path / "b<i>/UPPER.WEBP", format="WEBP", lossless=True)
    (tmp_path / "a$/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (tmp_path / "a$/empty.png").touch()
    picture(4, 4, 3).save(tmp_path / "b<i>/.hidden/one.png")
    picture(4, 4, 3).save(tmp_path / "a$/._mac.png")
    (tmp_path / "b<i>/what.heic").write_bytes(b"x")
    (tmp_path / "b<i>/notes.txt").write_text("hi")
    picture(4, 4, 3).save(tmp_path / "loose.png")
    return tmp_path


def independent(root: Path) -> list[np.ndarray]:
    """The upright pixels of the readable images of classes, by Pillow alone."""
    found = []
    for name in GOOD:
        with Image.open(root / name) as file:
            found.append(np.asarray(ImageOps.exif_transpose(file).convert("RGB")).reshape(-1, 3) / 255.0)
    return found


def test_facts_of_an_odd_folder_are_those_of_an_independent_count(odd):
    found = statistics(Folder(str(odd), "all"), 100)
    pixels = np.concatenate(independent(odd))
    assert (found.examples, found.scanned) == (8, 8)
    assert found.classes == {"a$": 6, "b<i>": 2}
    assert found.sizes == {(9, 7): 1, (8, 8): 1, (12, 6): 1, (1, 1): 1, (10, 11): 1, (5, 6): 1}
    assert found.mean == pytest.approx(pixels.mean(axis=0), abs=3e-3)  # two decoders of JPEG files
    assert found.std == pytest.approx(pixels.std(axis=0), abs=3e-3)
    assert {Path(name).name for name in found.unreadable} == {"broken.jpg", "empty.png"}
    reasons = {str(Path(name).relative_to(odd)): reason.split()[0] for name, reason in found.left_out.items()}
    assert reasons == {
        "a$/._mac.png": "hidden", "b<i>/.hidden": "hidden", "b<i>/what.heic": "not", "b<i>/notes.txt": "not",
        "loose.png": "not",
    }  # fmt: skip
    assert found.left_out[str(odd / "loose.png")] == "not in a class folder"


def test_files_of_another_split_are_not_left_out(odd):
    assert len(Folder(str(odd), "train").left_out()) == 5
    assert Folder(str(odd), "train").left_out() == Folder(str(odd), "test").left_out()


def test_the_command_writes_facts_and_a_sheet_where_every_other_image_is_odd(odd, tmp_path, capsys):
    source = {"type": "folder.Folder", "path": str(odd), "split": "all"}
    flags = [f"--config.data.source={source}", "--config.data.preprocess=resize(8)", "--config.evals={}"]
    out = tmp_path / "out"
    assert main(["preview", *TINY_FLAGS, *flags, f"--out={out}", "--images=20"]) == 0
    printed = capsys.readouterr().out
    assert "unreadable: 2 files" in printed
    assert "left out: 5 files" in printed
    assert json.loads((out / "preview.json").read_text())["classes"] == {"a$": 6, "b<i>": 2}
    with Image.open(out / "preview.png") as sheet:
        assert sheet.size[0] > 500


def test_a_folder_without_a_readable_image_says_so_after_its_facts(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"no")
    source = {"type": "folder.Folder", "path": str(tmp_path), "split": "all"}
    assert main(["preview", *TINY_FLAGS, f"--config.data.source={source}", f"--out={tmp_path / 'out'}"]) == 2
    found = capsys.readouterr()
    assert "unreadable: 2 files" in found.out
    assert "Found 2 unreadable images among 2" in found.err


def test_all_views_of_an_image_are_shown_side_by_side():
    options = [("model.width", "8"), ("model.depth", "1"), ("model.mlp_dim", "8"), ("batch_size", "4"), ("evals", "{}")]
    config, source = open_config(load("configs/labelfree.py:dino", options).to_dict())
    pictures = feed(config, source, 1, 8).pictures
    assert [picture.image.shape[0] for picture in pictures] == [16, 16, 8, 8] * 2
