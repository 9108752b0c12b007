"""Which files of a folder every command reads."""

import io
import logging
import os
import socket
import unicodedata

import numpy as np
import pytest
from PIL import Image

from vit_jax import stores
from vit_jax.__main__ import main
from vit_jax.cli.predict import find_images
from vit_jax.data import files
from vit_jax.data.open import open_source
from vit_jax.data.prepare import Rewrite
from vit_jax.data.prepare_sources import from_folder
from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.folder import Folder
from vit_jax.types import UserError

FORMATS = {"tif": "TIFF", "tiff": "TIFF", "gif": "GIF", "jfif": "JPEG", "jpe": "JPEG", "TIF": "TIFF", "Jpe": "JPEG"}


def save(path, kind="PNG", colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (colour, colour, colour)).save(path, kind)


@pytest.fixture
def kept(tmp_path):
    """A folder of two classes as people keep them; returns it and the images that count."""
    root = tmp_path / "data"
    good = [f"{name}/{i}.{ending}" for name in "ab" for i, ending in enumerate(FORMATS)]
    for path in good:
        save(root / path, FORMATS[path.rpartition(".")[2]])
    save(root / "a/folder.jpg/deep.png")
    for path in (".git/x.png", "__MACOSX/a/._0.png", "a/._0.tif", "a/.cache/y.png", "b/__MACOSX/z.png"):
        save(root / path)
    for path in (
        ".DS_Store",
        "a/.DS_Store",
        "a/Thumbs.db",
        "a/desktop.ini",
        "a/notes.TXT",
        "b/x.heic",
        "b/README",
        "top.txt",
    ):
        (root / path).write_bytes(b"x")
    save(tmp_path / "elsewhere/1.png")
    os.symlink(tmp_path / "elsewhere", root / "b/linked")
    os.symlink(root / "b/linked", root / "b/linked_twice")
    os.symlink(root, root / "a/up")
    os.symlink(root / "a", root / "a/round")
    os.symlink(root / "b/self.d", root / "b/self.d")
    os.symlink(root, root / "loop")
    return root, sorted([*good, "a/folder.jpg/deep.png", "b/linked/1.png"])


def relative(paths, root):
    return sorted(os.path.relpath(path, root) for path in paths)


def test_training_prediction_and_preparation_read_the_same_files(kept):
    root, expected = kept
    source = Folder(str(root), "all")
    assert source.class_names == ("a", "b")
    assert relative((source.name(i) for i in range(len(source))), root) == expected
    assert relative(find_images([str(root)]), root) == expected
    dataset = from_folder(str(root), None, None, Rewrite())
    assert relative((name for split in dataset.splits for name, _ in split.examples), root) == expected
    assert all(source[i]["image"].decode().shape == (4, 5, 3) for i in range(len(source)))


def test_what_is_left_out_is_counted_and_named_in_one_line(kept, caplog):
    root, _ = kept
    with caplog.at_level(logging.WARNING):
        for split in ("all", "all", "train", "test"):
            Folder(str(root), split)
    (record,) = caplog.records
    for part in (
        f"Not read in {root}: 9 hidden",
        "2 .txt",
        "1 .heic",
        "1 without an ending",
        "3 links to a folder above",
    ):
        assert part in record.getMessage()


def test_a_folder_without_images_says_what_it_contains(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.heic").write_bytes(b"x")
    for read in (lambda: Folder(str(tmp_path)), lambda: list(find_images([str(tmp_path)]))):
        with pytest.raises(UserError, match=r"1 \.heic.*\.tiff"):
            read()


@pytest.mark.parametrize("spelling", ["NFC", "NFD"])
def test_both_spellings_of_a_class_are_one_class(tmp_path, spelling):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("café", "plain"):
            save(tmp_path / "split" / split / unicodedata.normalize(form, name) / "0.png")
            save(tmp_path / "one" / unicodedata.normalize(form, name) / f"{split}.png")
    wanted = tuple(unicodedata.normalize("NFC", name) for name in ("café", "plain"))
    for split in ("train", "test"):
        source = Folder(str(tmp_path / "split"), split)
        assert (source.class_names, [source[i]["label"] for i in range(2)]) == (wanted, [0, 1])
    both = Folder(str(tmp_path / "one"), "all")
    assert (both.class_names, [both[i]["label"] for i in range(len(both))]) == (wanted, [0, 0, 1, 1])
    from vit_jax.data.open import Relabelled

    assert len(Relabelled(both, [unicodedata.normalize(spelling, name) for name in wanted])) == 4


@pytest.mark.parametrize(("header", "disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_table_and_a_disk_may_spell_names_differently(tmp_path, header, disk):
    save(tmp_path / unicodedata.normalize(disk, "é") / "0.png")
    path = tmp_path / "t.csv"
    path.write_text(unicodedata.normalize(header, "image,é,x\né/0.png,1,0\n"), encoding="utf-8")
    source = open_source(f"table:{path}")
    assert source.class_names == ("é", "x")
    assert source[0]["image"].decode().shape == (4, 5, 3)


def make_special(path, kind):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(path.parent)  # the path of a socket is short
            server.bind(path.name)
            os.chdir(here)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(40 * 10**9)
    elif kind == "loop":
        os.symlink(path, path)
    elif kind == "nowhere":
        os.symlink(path.parent / "none", path)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "sparse", "loop", "nowhere"])
def test_what_is_no_image_file_is_unreadable_and_not_opened(tmp_path, kind):
    save(tmp_path / "a/0.png")
    make_special(tmp_path / "a" / "special.jpg", kind)
    (tmp_path / "t.csv").write_text("image,x\na/special.jpg,1\n")
    sources = [Folder(str(tmp_path), "all"), open_source(f"table:{tmp_path / 't.csv'}")]
    for source in sources:
        with pytest.raises(UnreadableImage):
            source[len(source) - 1]["image"].decode()
    assert relative(find_images([str(tmp_path / "a")]), tmp_path) == ["a/0.png", "a/special.jpg"]
    assert list(find_images([str(tmp_path / "a/special.jpg")])) == [str(tmp_path / "a/special.jpg")]
    dataset = from_folder(str(tmp_path), "pets", ["train"], Rewrite())
    make = dict(dataset.splits[0].examples).get(str(tmp_path / "a/special.jpg"))
    if make is not None:  # it may be held out
        with pytest.raises(UnreadableImage):
            make()


def test_a_device_is_no_table():
    with pytest.raises(UserError, match="not a regular file"):
        open_source("table:/dev/zero")


def test_objects_are_chosen_as_files_are(monkeypatch):
    names = {"a/0.TIF": 5, "a/.x.png": 5, "__MACOSX/a/0.png": 5, "b/1.gif": 5, "b/2.txt": 5, "b/3.png": 2**31}
    monkeypatch.setattr(stores, "entries", lambda url: {n: stores.ObjectInfo(size, "") for n, size in names.items()})
    left_out = files.LeftOut()
    assert files.find_images("gs://bucket/data", left_out) == ["a/0.TIF", "b/1.gif"]
    assert dict(left_out.counts) == {"hidden": 2, ".txt": 1, "too large for an image": 1}
    assert list(find_images(["gs://bucket/data"])) == ["gs://bucket/data/a/0.TIF", "gs://bucket/data/b/1.gif"]


@pytest.mark.parametrize("out", ["{data}", "{data}/out", "{data}/cat/deep", "{parent}"])
def test_prepare_does_not_write_into_what_it_reads(tmp_path, capsys, out):
    data = tmp_path / "pets"
    for name in ("cat", "dog"):
        for i in range(3):
            save(data / name / f"{i}.png")
    before = sorted(data.rglob("*"))
    assert main(["prepare", f"--data=folder:{data}", f"--out={out.format(data=data, parent=tmp_path)}"]) == 2
    assert "is inside" in capsys.readouterr().err
    assert sorted(data.rglob("*")) == before


def test_animations_show_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP"):
        data = io.BytesIO()
        frames[0].save(
            data, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        path = tmp_path / f"x.{kind.lower()}"
        path.write_bytes(data.getvalue())
        from vit_jax.data.decode import decode

        np.testing.assert_array_equal(decode(path.read_bytes())[0, 0], [255, 0, 0])
