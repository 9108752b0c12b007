import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from tests.data.test_folder import classes
from tests.data.test_tfds import CLASSES, SIZES, pixels, png, several, write_dataset
from vit_jax.__main__ import main
from vit_jax.data import prepare
from vit_jax.data.decode import decode
from vit_jax.data.prepare_sources import from_folder
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.tfds import Tfds
from vit_jax.data.transforms.ops import resize_small
from vit_jax.types import UserError


def run(*flags):
    return main(["prepare", *map(str, flags)])


def picture(height, width, channels=3, seed=0):
    """Waves of brightness and broader waves of colour, as in a photograph."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    brightness = 80 * np.sin(9 * rows + 6 * columns + seed)
    colour = [30 * np.sin(3 * rows * c - 2 * columns + seed) for c in range(channels)]
    return np.stack([127.5 + brightness + wave for wave in colour], axis=2).astype(np.uint8)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Photographs of all formats, small and large."""
    for split, names in (("train", ("cat", "dog of mine")), ("val", ("cat", "dog of mine"))):
        for name in names:
            folder = tmp_path / "Photos" / split / name
            save(folder / "0.jpg", picture(60, 90, seed=1), quality=95)
            save(folder / "1.png", picture(90, 40, seed=2))
            save(folder / "deep/2.webp", picture(64, 64, seed=3), lossless=True)
            save(folder / "3.jpeg", picture(31, 100, seed=4), quality=80)
            save(folder / "4.jpg", picture(50, 50, 1, seed=5), quality=95)
    return tmp_path / "Photos"


def pixels_of(source, index):
    return source[index]["image"].decode()


def examples(source):
    return [(source[i]["label"], pixels_of(source, i)) for i in range(len(source))]


def stored_examples(name, split, data_dir):
    """The features of every example as read by TFDS, with images as encoded bytes."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    images = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    return list(builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding() for key in images}))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_folder_reads_back_the_same(photos, tmp_path):
    assert run(f"--data=folder:{photos}", f"--out={tmp_path}/out", "--name=pets") == 0
    for split in ("train", "val"):
        before, after = Folder(str(photos), split), Tfds("pets", split, str(tmp_path / "out"))
        assert after.class_names == before.class_names == ("cat", "dog of mine")
        assert len(after) == len(before) == 10
        for (label, image), (label_after, image_after) in zip(examples(before), examples(after), strict=True):
            assert label == label_after
            np.testing.assert_array_equal(image, image_after)


def test_folder_keeps_every_byte_and_the_names_of_the_files(photos, tmp_path):
    run(f"--data=folder:{photos}", f"--out={tmp_path}/out")
    records, source = stored_examples("photos", "val", tmp_path / "out"), Folder(str(photos), "val")
    for i in range(len(source)):
        assert records[i]["image"] == Path(source.name(i)).read_bytes()
        assert records[i]["file_name"].decode() == os.path.relpath(source.name(i), photos)


def test_holdout_equals_the_folders(tmp_path, capsys):
    root = classes(tmp_path / "x", 20)
    run(f"--data=folder:{root}", f"--out={tmp_path}/out")
    assert "the split test is the tenth of each class" in capsys.readouterr().err
    for split in ("train", "test"):
        before, after = Folder(root, split), Tfds("x", split, str(tmp_path / "out"))
        for (label, image), (label_after, image_after) in zip(examples(before), examples(after), strict=True):
            assert label == label_after
            np.testing.assert_array_equal(image, image_after)


def test_large_images_are_shrunk_and_look_the_same(photos, tmp_path):
    run(f"--data=folder:{photos}", f"--out={tmp_path}/out", "--min_side=32")
    before, after = Folder(str(photos), "train"), Tfds("photos", "train", str(tmp_path / "out"))
    records = stored_examples("photos", "train", tmp_path / "out")
    for i in range(len(before)):
        data, image = Path(before.name(i)).read_bytes(), pixels_of(before, i)
        if min(image.shape[:2]) <= 32:
            assert records[i]["image"] == data
            continue
        expected = resize_small(32)(image, np.random.default_rng())
        assert pixels_of(after, i).shape == expected.shape
        assert min(pixels_of(after, i).shape[:2]) == 32
        assert np.abs(pixels_of(after, i).astype(int) - expected).mean() < 2.5


def shrunk(shrink, image, **options):
    """The file of an image after shrinking."""
    file = io.BytesIO()
    image.save(file, **options)
    return shrink(file.getvalue())


def test_gray_stays_gray():
    data = shrunk(prepare.Rewrite(16), Image.fromarray(picture(40, 40, 1).squeeze()), format="PNG")
    assert simplejpeg.decode_jpeg_header(data)[2] == "Gray"


def test_orientation_is_applied_to_shrunk_images():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(picture(40, 80))
    expected = resize_small(20)(np.asarray(image.transpose(Image.Transpose.ROTATE_270)), np.random.default_rng())
    smaller = decode(shrunk(prepare.Rewrite(20), image, format="JPEG", quality=95, exif=exif))
    assert smaller.shape == (40, 20, 3)
    assert np.abs(smaller.astype(int) - expected).mean() < 2.5


def test_transparency_becomes_white():
    image = Image.fromarray(np.dstack([picture(40, 40), np.zeros((40, 40), np.uint8)]))
    assert decode(shrunk(prepare.Rewrite(16), image, format="PNG")).min() >= 254


def test_quality_sets_the_size():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    small, large = (len(shrunk(prepare.Rewrite(32, quality), image, format="PNG")) for quality in (20, 95))
    assert small < large / 2


@pytest.mark.parametrize("flags", [[], ["--min_side=24"]])
def test_bytes_are_the_same_for_any_number_of_threads(photos, tmp_path, flags):
    for threads in (1, 5):
        run(f"--data=folder:{photos}", f"--out={tmp_path}/{threads}", f"--threads={threads}", *flags)
    assert files(tmp_path / "1") == files(tmp_path / "5")


@pytest.mark.parametrize(("size", "count"), [(1, 10), (3_000, None), (2**20, 1)])
def test_shards_hold_all_examples_in_order(photos, tmp_path, monkeypatch, size, count):
    monkeypatch.setattr(prepare, "SHARD_BYTES", size)
    run(f"--data=folder:{photos}", f"--out={tmp_path}/out")
    before, after = Folder(str(photos), "train"), Tfds("photos", "train", str(tmp_path / "out"))
    records = stored_examples("photos", "train", tmp_path / "out")
    shards = len(list((tmp_path / "out").rglob("*-train.array_record-*")))
    assert shards == count or (count is None and 2 <= shards < 10)
    assert [record["image"] for record in records] == [Path(before.name(i)).read_bytes() for i in range(len(before))]
    for i in reversed(range(len(before))):
        np.testing.assert_array_equal(pixels_of(after, i), pixels_of(before, i))


def test_some_splits_can_be_chosen(photos, tmp_path):
    run(f"--data=folder:{photos}", f"--out={tmp_path}/out", "--split=val")
    assert len(Tfds("photos", "val", str(tmp_path / "out"))) == 10
    with pytest.raises(UserError, match="split='train'"):
        Tfds("photos", "train", str(tmp_path / "out"))


def test_split_without_classes_can_be_left_out(photos, tmp_path, capsys):
    save(photos / "test" / "0.jpg", picture(8, 8))
    assert run(f"--data=folder:{photos}", f"--out={tmp_path}/out") == 2
    message = capsys.readouterr().err
    assert "no images in class folders" in message
    assert "--split=train,val" in message
    assert run(f"--data=folder:{photos}", f"--out={tmp_path}/out", "--split=train,val") == 0


def test_unreadable_images_are_omitted_named_and_listed(photos, tmp_path, capsys):
    (photos / "train/cat/1.png").write_bytes(b"nothing")
    (photos / "val/cat/1.png").write_bytes(b"")
    assert run(f"--data=folder:{photos}", f"--out={tmp_path}/out", "--max_unreadable=0.1") == 0
    output = capsys.readouterr()
    listed = (tmp_path / "out/photos/1.0.0/unreadable.txt").read_text()
    for name, reason in (("train/cat/1.png", "not an image"), ("val/cat/1.png", "the file is empty")):
        assert f"{photos / name}: {reason}" in listed
        assert f"omitted: {photos / name}: {reason}" in output.err
    assert "2 unreadable images" in output.err
    assert "train 9, val 9" in output.out
    names = [record["file_name"] for record in stored_examples("photos", "train", tmp_path / "out")]
    assert len(names) == 9
    assert b"train/cat/1.png" not in names


def test_more_unreadable_images_than_allowed_stop(photos, tmp_path, capsys):
    (photos / "train/cat/1.png").write_bytes(b"nothing")
    (photos / "val/cat/1.png").write_bytes(b"nothing")
    assert run(f"--data=folder:{photos}", f"--out={tmp_path}/out") == 2
    assert "2 of 20 images are unreadable, expected at most 1.00%" in capsys.readouterr().err
    assert not (tmp_path / "out/photos/1.0.0").exists()


def test_an_existing_folder_is_refused(photos, tmp_path, capsys):
    assert run(f"--data=folder:{photos}", f"--out={tmp_path}/out") == 0
    before = files(tmp_path / "out")
    assert run(f"--data=folder:{photos}", f"--out={tmp_path}/out", "--min_side=16") == 2
    assert "already exists" in capsys.readouterr().err
    assert files(tmp_path / "out") == before


def test_killed_run_leaves_a_partial_folder_that_the_next_replaces(photos, tmp_path):
    code = (
        "import os, signal, sys; from vit_jax.cli import prepare\n"
        "prepare.WriteProgress.__call__ = lambda self, done: done == 7 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare.main(sys.argv[1:])"
    )
    flags = [f"--data=folder:{photos}", f"--out={tmp_path}/out"]
    assert subprocess.run([sys.executable, "-c", code, *flags]).returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out/photos").iterdir()] == ["1.0.0.partial"]
    with pytest.raises(UserError, match="no TFDS data set 'photos'"):
        Tfds("photos", "train", str(tmp_path / "out"))
    assert run(*flags) == 0
    assert [path.name for path in (tmp_path / "out/photos").iterdir()] == ["1.0.0"]
    assert len(Tfds("photos", "train", str(tmp_path / "out"))) == 10


def test_second_run_at_the_same_time_is_refused(photos, tmp_path):
    dataset = from_folder(str(photos), None, None, prepare.Rewrite())

    def second(done):
        other = from_folder(str(photos), None, None, prepare.Rewrite())
        with pytest.raises(UserError, match="Another run is writing"):
            prepare.write(other, tmp_path / "out", threads=1, max_unreadable=0.0, progress=lambda done: None)

    prepare.write(dataset, tmp_path / "out", threads=1, max_unreadable=0.0, progress=second)
    assert len(Tfds("photos", "val", str(tmp_path / "out"))) == 10


def test_a_full_disk_is_one_message(photos, tmp_path):
    code = (
        "import resource, sys; from vit_jax.__main__ import main; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "sys.exit(main(['prepare', *sys.argv[1:]]))"
    )
    flags = [f"--data=folder:{photos}", f"--out={tmp_path}/out"]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "1.0.0.partial" in message
    assert "File too large" in message
    assert "free space" in message
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [" cat", "cat\n", "c\udcfft"])
def test_class_names_that_tfds_cannot_keep_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"class folder .*rename it"):
        from_folder(classes(tmp_path / "x", names=(name, "dog")), None, None, prepare.Rewrite())


def test_name_of_tfds_itself_is_refused(tmp_path, capsys):
    assert run(f"--data=folder:{classes(tmp_path / 'CIFAR10')}", f"--out={tmp_path}/out") == 2
    assert "--name=my_cifar10" in capsys.readouterr().err


def write_tfrecord(data_dir, name="tiny", encode=png):
    """Write the dataset of test_tfds as TFRecord, TFDS's default, by tensorboardX."""
    from tensorflow_datasets.proto import tf_example_pb2

    write_dataset(data_dir, name, "tfrecord")
    for split, size in SIZES.items():
        path = data_dir / name / "1.0.0" / f"{name}-{split}.tfrecord-00000-of-00001"
        path.unlink()
        writer = RecordWriter(str(path))
        for index in range(size):
            example = tf_example_pb2.Example()
            features = example.features.feature
            features["image"].bytes_list.value.append(encode(pixels(split, index)))
            features["label"].int64_list.value.append(index % 3)
            features["several"].int64_list.value.extend(several(index))
            features["id"].bytes_list.value.append(f"{split} {index}".encode())
            writer.write(example.SerializeToString())
        writer.close()
    return str(data_dir)


def test_tfrecord_is_rewritten_by_the_command_that_the_message_names(tmp_path):
    data_dir = write_tfrecord(tmp_path / "old data")
    before = files(tmp_path / "old data")
    with pytest.raises(UserError, match=r"prepared as tfrecord.*python -m vit_jax prepare --data=tfds:tiny") as error:
        Tfds("tiny", "train", data_dir)
    command = str(error.value).partition("python -m vit_jax ")[2].partition(", then read it")[0]
    assert subprocess.run([sys.executable, "-m", "vit_jax", *shlex.split(command)]).returncode == 0
    assert files(tmp_path / "old data") == before
    for split, size in SIZES.items():
        one = Tfds("tiny", split, data_dir + "_array_record")
        many = Tfds("tiny", split, data_dir + "_array_record", label_key="several")
        assert one.class_names == many.class_names == tuple(CLASSES)
        assert len(one) == size
        records = stored_examples("tiny", split, data_dir + "_array_record")
        for index in range(size):
            assert one[index]["label"] == index % 3
            assert np.flatnonzero(many[index]["label"]).tolist() == several(index)
            assert records[index]["id"] == f"{split} {index}".encode()
            np.testing.assert_array_equal(pixels_of(one, index), pixels(split, index))


def test_rewriting_needs_no_tensorflow(tmp_path):
    data_dir = write_tfrecord(tmp_path / "old")
    code = (
        "import sys; from vit_jax.cli.prepare import main; main(sys.argv[1:]); assert 'tensorflow' not in sys.modules"
    )
    flags = ["--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={tmp_path}/new"]
    subprocess.run([sys.executable, "-c", code, *flags], check=True)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_images_of_tfds_are_shrunk_and_other_features_kept(tmp_path, file_format):
    write = write_tfrecord if file_format == "tfrecord" else write_dataset
    flags = ["--data=tfds:tiny", f"--data_dir={write(tmp_path / 'old')}", "--split=test", f"--out={tmp_path}/new"]
    assert run(*flags, "--min_side=2") == 0
    after = Tfds("tiny", "test", str(tmp_path / "new"), label_key="several")
    for index in range(SIZES["test"]):
        assert np.flatnonzero(after[index]["label"]).tolist() == several(index)
        assert pixels_of(after, index).shape == (2, 2, 3)
        assert np.abs(pixels_of(after, index).astype(int) - pixels("test", index)[:2, :2]).max() <= 2
    features = json.loads((tmp_path / "new/tiny/1.0.0/features.json").read_text())["featuresDict"]["features"]
    assert "encodingFormat" not in features["image"]["image"]


def test_record_of_a_small_image_keeps_every_byte(tmp_path):
    data_dir = write_tfrecord(tmp_path / "old")
    for name, flags in (("copied", []), ("shrunk", ["--min_side=4"])):
        assert run("--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={tmp_path / name}", *flags) == 0
    records = "tiny/1.0.0/tiny-train.array_record-00000-of-00001"
    assert (tmp_path / "copied" / records).read_bytes() == (tmp_path / "shrunk" / records).read_bytes()


@pytest.mark.parametrize("place", [3, 20, 60])
def test_wrong_checksum_names_the_file_and_the_record(tmp_path, capsys, place):
    data_dir = write_tfrecord(tmp_path / "old")
    (path,) = (tmp_path / "old").rglob("*-train.tfrecord-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 10 * 3 + place] ^= 1
    path.write_bytes(data)
    assert run("--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={tmp_path}/new") == 2
    message = capsys.readouterr().err
    assert f"Record 3 of {path} has a wrong checksum" in message
    assert not (tmp_path / "new/tiny/1.0.0").exists()


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (-5, "Record 9 of .* is cut off"),
        (0, "has 0 records; dataset_info.json states 10"),
        (7, "Record 0 of .* is cut off"),
    ],
)
def test_file_that_is_cut_off_is_refused(tmp_path, capsys, keep, says):
    data_dir = write_tfrecord(tmp_path / "old")
    (path,) = (tmp_path / "old").rglob("*-train.tfrecord-*")
    path.write_bytes(path.read_bytes()[:keep])
    assert run("--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={tmp_path}/new") == 2
    assert re.search(says, capsys.readouterr().err)


def test_missing_file_is_named(tmp_path, capsys):
    data_dir = write_tfrecord(tmp_path / "old")
    (path,) = (tmp_path / "old").rglob("*-test.tfrecord-*")
    path.unlink()
    assert run("--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={tmp_path}/new") == 2
    assert str(path) in capsys.readouterr().err


def test_damaged_array_record_is_refused(tmp_path, capsys):
    data_dir = write_dataset(tmp_path / "old")
    (path,) = (tmp_path / "old").rglob("*-train.array_record-*")
    path.write_bytes(path.read_bytes()[:100])
    assert run("--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={tmp_path}/new", "--min_side=2") == 2
    assert "The split train in" in capsys.readouterr().err


def test_array_record_is_not_copied_without_min_side(tmp_path, capsys):
    data_dir = write_dataset(tmp_path / "old")
    assert run("--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={tmp_path}/new") == 2
    assert "--min_side" in capsys.readouterr().err


def test_writing_beside_the_source_is_refused(tmp_path, capsys):
    data_dir = write_tfrecord(tmp_path / "old")
    before = files(tmp_path / "old")
    assert run("--data=tfds:tiny", f"--data_dir={data_dir}", f"--out={data_dir}") == 2
    assert "already exists" in capsys.readouterr().err
    assert files(tmp_path / "old") == before
