"""Images with captions from tables, folders, tar files and TFDS."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests import tfds_made
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.pairs import Pairs
from vit_jax.data.sources.shards import Shards
from vit_jax.data.sources.tfds_captions import TfdsCaptions
from vit_jax.types import UserError

CAPTIONS = {"a.png": ("a cat, asleep", "Katze 🐈"), "b.png": ("a dog",), "c.png": ("naïve café",)}


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """A folder with the images alone."""
    for i, name in enumerate(CAPTIONS):
        (tmp_path / name).write_bytes(png(i))
    return tmp_path


def write(folder, kind):
    """Write the captions in a format; return what a source reads."""
    rows = [{"image": name, "text": text} for name, texts in CAPTIONS.items() for text in texts]
    lists = [{"image": name, "text": list(texts)} for name, texts in CAPTIONS.items()]
    path = folder / f"pairs.{kind}"
    if kind in ("csv", "tsv"):
        comma = "," if kind == "csv" else "\t"
        lines = [comma.join((row["image"], f'"{row["text"]}"')) for row in rows]
        path.write_text("\n".join([f"image{comma}text", *lines]), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, lists)))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lists), path)
    else:
        for name, texts in CAPTIONS.items():
            (folder / name).with_suffix(".txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        return folder
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_every_format_gives_the_same_pairs(images, kind):
    source = Pairs(str(write(images, kind)))
    found = {source.name(i).rpartition("/")[2]: source[i]["text"] for i in range(len(source))}
    assert found == CAPTIONS
    assert [int(source[i]["image"].decode()[0, 0, 0]) for i in range(3)] == [0, 1, 2]


def test_train_and_test_are_disjoint_and_all(images):
    path = images / "many.jsonl"
    path.write_text("\n".join(json.dumps({"image": f"{i}.png", "text": f"number {i}"}) for i in range(200)))
    parts = [
        {source.name(i) for i in range(len(source))}
        for source in (Pairs(str(path), split) for split in ("train", "test"))
    ]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 200
    assert 5 < len(parts[1]) < 40


WRONG = {
    "no column": ("a.csv", "image,caption\na.png,x\n", r"line 2 .* without 'text'"),
    "an empty caption": ("a.csv", "image,text\na.png,x\nb.png, \n", r"line 3 .*not empty"),
    "no caption": ("a.jsonl", '{"image": "a.png", "text": null}', r"line 1 .*expected a text"),
    "a number": ("a.jsonl", '{"image": "a.png", "text": 7}', r"line 1 .*found|line 1 .*caption is 7"),
    "no path": ("a.jsonl", '{"image": 3, "text": "x"}', r"expected the path of an image"),
    "a list": ("a.jsonl", "[1]", r"expected an object"),
    "not JSON": ("a.jsonl", "{", r"no readable table"),
    "a loose comma": ("a.csv", "image,text\na.png,a cat, asleep\n", r"into quotes"),
    "nothing": ("a.csv", "image,text\n", r"Found no images"),
    "no Parquet": ("a.parquet", "PAR1", r"no readable table"),
    "not text": ("a.csv", b"image,text\n\xff\xfe,x", r"no readable table"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, name):
    file, content, message = WRONG[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        Pairs(str(tmp_path / file))


@pytest.mark.parametrize("place", ["missing", "missing.csv"])
def test_a_missing_place_is_named(tmp_path, place):
    with pytest.raises(UserError, match=place):
        Pairs(str(tmp_path / place))


def test_a_folder_without_captions_is_refused(images):
    with pytest.raises(UserError, match=r"3 images in .* no \.txt"):
        Pairs(str(images))


def test_features_belong_to_their_images(images):
    np.save(images / "features.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    source = Pairs(str(write(images, "jsonl")), features=str(images / "features.npy"))
    assert [source[i]["features"].tolist() for i in range(3)] == [[0, 1], [2, 3], [4, 5]]
    np.save(images / "features.npy", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match=r"expected floats \[3, d\]"):
        Pairs(str(images / "pairs.jsonl"), features=str(images / "features.npy"))


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_tar_files_are_read_in_any_order(tmp_path):
    for shard in range(2):
        members = {}
        for i in range(3):
            key = f"{shard}{i}"
            members[f"{key}.png"] = png(10 * shard + i)
            members[f"{key}.txt"] = f"number {key}".encode()
        write_tar(tmp_path / f"{shard}.tar", members)
    source = Shards(str(tmp_path))
    assert len(source) == 6
    for i in (4, 0, 5):
        assert source[i]["text"] == f"number {i // 3}{i % 3}"
        assert source[i]["image"].decode()[0, 0, 0] == 10 * (i // 3) + i % 3
    again = pickle.loads(pickle.dumps(source))  # of this test's own making: data workers get a source so
    assert again[5]["text"] == "number 12"


def test_the_index_of_a_tar_is_built_once_and_anew_where_it_changed(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", {"x.png": png(1), "x.json": b'{"caption": ["one", "two"]}', "alone.png": png(2)})
    source = Shards(str(tmp_path / "*.tar"))
    assert source[0]["text"] == ["one", "two"]
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert len(Shards(str(tmp_path / "*.tar"))) == 1
    write_tar(tmp_path / "a.tar", {"x.png": png(1), "x.txt": b"x", "y.png": png(2), "y.txt": b"y"})
    assert len(Shards(str(tmp_path))) == 2


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{}",
        b"[]",
        b'{"stamp": 1, "entries": 2}',
        b"\xff",
        b'{"stamp": STAMP, "entries": [["x", -1, -1, 0, 1, ".txt"]]}',
    ],
)
def test_a_damaged_index_is_built_anew(tmp_path, stored):
    write_tar(tmp_path / "a.tar", {"x.png": png(1), "x.txt": b"x"})
    status = (tmp_path / "a.tar").stat()
    stored = stored.replace(b"STAMP", f"[{status.st_size}, {status.st_mtime_ns}]".encode())
    (tmp_path / "a.tar.index.json").write_bytes(stored)
    assert Shards(str(tmp_path))[0]["text"] == "x"


def test_a_tar_that_was_cut_is_unreadable_there(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.png": png(1), "x.txt": b"x"})
    source = Shards(str(tmp_path))
    with open(tmp_path / "a.tar", "r+b") as file:
        file.truncate(600)
    with pytest.raises(UnreadableImage, match="ends inside"):
        source[0]


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match="no tar file"):
        Shards(str(tmp_path))


def test_tfds_captions_are_all_read(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {"image": tfds.features.Image(), "captions": tfds.features.Sequence({"text": tfds.features.Text()})}
    captions = [[f"one {i}".encode(), "zwei ü".encode()] for i in range(3)]
    tfds_made.write(tmp_path, features, [{"image": [png(i)], "captions/text": captions[i]} for i in range(3)])
    source = TfdsCaptions("tiny", data_dir=str(tmp_path))
    assert [source[i]["text"] for i in range(3)] == [(f"one {i}", "zwei ü") for i in range(3)]
    with pytest.raises(UserError, match="no text feature 'caption'"):
        TfdsCaptions("tiny", data_dir=str(tmp_path), text_key="caption")
