import os

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.source import UnreadableImage
from vit_jax.data.sources.folder import Folder
from vit_jax.models.vit import ViT
from vit_jax.tasks.classify import Classify
from vit_jax.types import UserError


def write(root, *paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number % 256, 0, 0)).save(root / path, "PNG")
    return str(root)


def classes(root, count=10, names=("cat", "dog"), suffix="png"):
    return write(root, *(f"{name}/{i}.{suffix}" for name in names for i in range(count)))


def names(source, root):
    return [os.path.relpath(source.name(i), root) for i in range(len(source))]


def both_halves(root, **kwargs):
    return [set(names(Folder(root, split, **kwargs), root)) for split in ("train", "test")]


def test_examples_are_in_sorted_order_with_their_labels(tmp_path):
    source = Folder(write(tmp_path, "b/1.png", "a/2.png", "b/0.png", "a/1.png"), "all")
    assert source.class_names == ("a", "b")
    assert names(source, tmp_path) == ["a/1.png", "a/2.png", "b/0.png", "b/1.png"]
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1]
    assert [int(source[i]["image"].decode()[0, 0, 0]) for i in range(4)] == [3, 1, 2, 0]


def test_extensions_in_any_case_and_nested_files_are_found(tmp_path):
    found = ["a/1.JPG", "a/2.jpeg", "a/deep/er/3.PNG", "b/4.WebP", "b/5.bmp", "b/6.JPEG"]
    ignored = ["a/.hidden.png", "a/.cache/7.png", ".git/8.png", "b/notes.txt", "top.png"]
    assert names(Folder(write(tmp_path, *found, *ignored), "all"), tmp_path) == found


def test_links_are_followed_but_not_for_ever(tmp_path):
    write(tmp_path / "elsewhere", "1.png")
    root = write(tmp_path / "root", "a/0.png", "b/0.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root/a/linked")
    os.symlink(tmp_path / "root/a", tmp_path / "root/a/loop")
    assert names(Folder(root, "all"), root) == ["a/0.png", "a/linked/1.png", "b/0.png"]


def test_one_channel(tmp_path):
    assert Folder(classes(tmp_path), "all", channels=1)[0]["image"].decode().shape == (3, 4, 1)


def test_holdout_divides_each_class(tmp_path):
    train, test = both_halves(classes(tmp_path, 20), holdout=0.25)
    assert not train & test
    assert len(train | test) == 40
    assert [sum(path.startswith(name) for path in test) for name in ("cat", "dog")] == [5, 5]


def test_holdout_is_a_function_of_the_seed_and_the_paths(tmp_path):
    first = both_halves(classes(tmp_path / "x", 20))
    assert both_halves(classes(tmp_path / "y", 20)) == first
    assert both_halves(str(tmp_path / "x"), split_seed=1) != first


@pytest.mark.parametrize("holdout", [0.01, 0.5, 0.99])
def test_holdout_leaves_an_image_in_both_halves(tmp_path, holdout):
    train, test = both_halves(classes(tmp_path, 2), holdout=holdout)
    assert [sorted(path[:3] for path in half) for half in (train, test)] == [["cat", "dog"]] * 2


def test_single_image_of_a_class_is_for_training(tmp_path):
    train, test = both_halves(write(tmp_path, "a/0.png", "b/0.png", "b/1.png"))
    assert (len(train), len(test)) == (2, 1)
    assert Folder(str(tmp_path), "test").class_names == ("a", "b")


@pytest.mark.parametrize("folder", ["val", "VALID", "Validation"])
@pytest.mark.parametrize("split", ["val", "validation"])
def test_split_folders_are_found_by_any_of_their_names(tmp_path, folder, split):
    classes(tmp_path / "Train", 5)
    classes(tmp_path / folder, 2)
    assert len(Folder(str(tmp_path), "train")) == 10
    assert len(Folder(str(tmp_path), split)) == 4


def test_test_images_may_lack_a_class_of_training(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/owl/1.png", "test/owl/1.png", "test/cat/1.png")
    test = Folder(str(tmp_path), "test")
    assert test.fields["label"].class_names == ("cat", "dog", "owl")
    assert [test[i]["label"] for i in range(len(test))] == [0, 2]


def test_class_named_like_a_split_is_a_class(tmp_path):
    assert Folder(classes(tmp_path, names=("bus", "train")), "all").class_names == ("bus", "train")


def test_test_folder_without_classes_is_left_alone(tmp_path):
    classes(tmp_path / "train")
    write(tmp_path, "test/0.png")
    assert len(Folder(str(tmp_path), "train")) == 20


def test_corrupt_and_vanished_files_are_unreadable(tmp_path):
    source = Folder(classes(tmp_path, 2), "all")
    (tmp_path / "cat/0.png").write_bytes(b"nothing")
    (tmp_path / "cat/1.png").unlink()
    for index, reason in enumerate(["not an image", "No such file"]):
        with pytest.raises(UnreadableImage, match=reason):
            source[index]["image"].decode()
    assert source[2]["image"].decode().dtype == np.uint8


def test_missing_path_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no readable folder.*nowhere.*No such file"):
        Folder(str(tmp_path / "nowhere"))


def test_file_instead_of_a_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no readable folder.*Not a directory"):
        Folder(write(tmp_path, "x.png") + "/x.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("closed", [".", "cat", "cat/deep"])
def test_folder_without_permission_is_an_error(tmp_path, closed):
    root = write(tmp_path, "cat/deep/0.png", "dog/0.png")
    (tmp_path / closed).chmod(0)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            Folder(root, "all")
    finally:
        (tmp_path / closed).chmod(0o700)


@pytest.mark.parametrize("paths", [[], ["0.png"], ["a/notes.txt", "b/notes.txt"]])
def test_folder_without_images_in_class_folders_is_an_error(tmp_path, paths):
    with pytest.raises(UserError, match=r"no images in class folders.*\.webp"):
        Folder(write(tmp_path, *paths))


def test_one_class_only_is_an_error_to_classify(tmp_path):
    source = Folder(classes(tmp_path, names=("cat",)))
    with pytest.raises(UserError, match=r"one class only.*cat.*at least two"):
        Classify(ViT(1, 8, 1, 8, 1, patch_size=4), class_names=source.class_names)


def test_class_folder_without_images_is_an_error_that_names_it(tmp_path):
    classes(tmp_path)
    (tmp_path / "eel").mkdir()
    with pytest.raises(UserError, match=r"without images.*: eel;"):
        Folder(str(tmp_path))


def test_differing_classes_of_the_splits_are_named(tmp_path):
    classes(tmp_path / "train", names=("cat", "dog", "eel"))
    classes(tmp_path / "test", names=("cat", "dog", "fox"))
    with pytest.raises(UserError, match=r"only in train: eel; only in test: fox"):
        Folder(str(tmp_path), "train")


def test_split_that_is_not_there_names_those_found(tmp_path):
    classes(tmp_path / "train")
    with pytest.raises(UserError, match=r"Found the splits train in .*expected 'val'.*use one of: train"):
        Folder(str(tmp_path), "val")


def test_test_split_with_only_a_val_folder_says_so(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "val")
    with pytest.raises(UserError, match="use split=val"):
        Folder(str(tmp_path), "test")


def test_two_folders_for_one_split_are_an_error(tmp_path):
    for name in ("train", "val", "validation"):
        classes(tmp_path / name)
    with pytest.raises(UserError, match="both 'val' and 'validation'"):
        Folder(str(tmp_path))


@pytest.mark.parametrize("split", ["val", "tset"])
def test_unknown_split_of_one_folder_is_an_error(tmp_path, split):
    with pytest.raises(UserError, match=rf"split='{split}'.*'train' or 'test'.*'all'"):
        Folder(classes(tmp_path), split)


@pytest.mark.parametrize("holdout", [0, 1, -0.5])
def test_holdout_out_of_range_is_an_error(tmp_path, holdout):
    with pytest.raises(UserError, match=f"holdout={holdout}"):
        Folder(classes(tmp_path), holdout=float(holdout))
