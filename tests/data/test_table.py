import numpy as np
import pytest
from PIL import Image

from vit_jax.data.examples import Array
from vit_jax.data.open import Relabelled, open_source
from vit_jax.data.pipeline import TrainData
from vit_jax.data.source import Numbers, UnreadableImage
from vit_jax.data.sources.table import Table
from vit_jax.types import UserError


@pytest.fixture
def table(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / name)
    path = tmp_path / "t.csv"
    path.write_text("image,cat,dog\na.png,1,0\nb.png,0.5,-2\nmissing.png,0,0\n")
    return path


def test_a_table_gives_images_and_their_numbers(table):
    source = open_source(f"table:{table}")
    assert (len(source), source.class_names) == (3, ("cat", "dog"))
    assert isinstance(source.fields["label"], Numbers)
    np.testing.assert_array_equal(source[1]["label"], np.float32([0.5, -2]))
    assert source[0]["image"].decode().shape == (4, 4, 3)
    with pytest.raises(UnreadableImage, match="No such file"):
        source[2]["image"].decode()


def test_batches_hold_a_number_for_each_name(table):
    data = TrainData(Table(str(table)), "", batch_size=4, seed=0)
    _, batch = next(data.from_step(0, 1))
    assert batch["label"].shape == (4, 2)
    assert batch["label"].dtype == np.float32
    assert data.spec.layout["label"] == Array((2,), "float32")


def test_a_number_that_float32_cannot_hold_is_told(table):
    table.write_text(table.read_text().replace("0.5,-2", "1e300,-2"))
    with pytest.raises(UserError, match=r"line 3 of .* finite numbers of float32"):
        Table(str(table))


def test_numbers_are_matched_by_name(table):
    source = Relabelled(Table(str(table)), ("bird", "dog", "cat"))
    np.testing.assert_array_equal(source[1]["label"], np.float32([0, -2, 0.5]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nothing as the header"),
        ("image,cat\n", "0 lines below"),
        ("image\na.png\n", "at least one of numbers"),
        ("image,cat,cat\na.png,1,2\n", "each of its own name"),
        ("image,cat\na.png,yes\n", "line 2 of .* could not convert"),
        ("image,cat\na.png,1,2\n", "3 columns"),
        ("image,cat\na.png,nan\n", "finite numbers"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, text, says):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        Table(str(path))
    with pytest.raises(UserError, match="no readable table"):
        Table(str(tmp_path / "none.csv"))
