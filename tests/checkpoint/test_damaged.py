"""Damaged and wrong model files: one message with what was found and what to do, exit code 2, nothing written or run."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from tests.hub_server import serving
from tests.peers import torch
from vit_jax.__main__ import main as vit
from vit_jax.pretrained.tensors import read_arrays
from vit_jax.types import UserError


def timm_arrays(depth=1, width=8, classes=3):
    """A tiny ViT as timm names it: 16 px images, patches of 8."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 5, width), "patch_embed.proj.weight": (width, 3, 8, 8),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
        "head.weight": (classes, width), "head.bias": (classes,),
    }  # fmt: skip
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.{name}": shape
            for name, shape in {
                "norm1.weight": (width,), "norm1.bias": (width,), "attn.qkv.weight": (3 * width, width),
                "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
                "norm2.weight": (width,), "norm2.bias": (width,), "mlp.fc1.weight": (16, width), "mlp.fc1.bias": (16,),
                "mlp.fc2.weight": (width, 16), "mlp.fc2.bias": (width,),
            }.items()
        }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 3,
    "model_args": {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 2},
    "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 1.0},
}


def folder(tmp, arrays=None, config=CONFIG):
    path = tmp / "model"
    path.mkdir()
    safetensors.numpy.save_file(timm_arrays() if arrays is None else arrays, path / "model.safetensors")
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def edit(tmp, change):
    """The folder with its weights changed as bytes."""
    path = folder(tmp)
    file = path / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return path


def without(name):
    return {key: array for key, array in timm_arrays().items() if key != name}


def npz(tmp, **arrays):
    np.savez(tmp / "model.npz", **arrays)
    return tmp / "model.npz"


def raw(tmp, content, name="model.npz"):
    (tmp / name).write_bytes(content)
    return tmp / name


def truncated_npz(tmp):
    path = npz(tmp, **{"embedding/kernel": np.zeros((8, 8, 3, 8), np.float32)})
    return raw(tmp, path.read_bytes()[:700])


def pickled_npz(tmp):
    return npz(tmp, **{"embedding/kernel": np.array([{"a": 1}], dtype=object)})


class Hostile:
    """Would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def pth(tmp, value):
    torch.save(value, tmp / "model.pth")
    return tmp / "model.pth"


def old_pickle(tmp):
    stream = io.BytesIO()
    pickle.dump(Hostile(tmp / "ran"), stream, protocol=2)
    return raw(tmp, stream.getvalue(), "model.pth")


def zip_of(tmp):
    with zipfile.ZipFile(tmp / "model.npz", "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    return tmp / "model.npz"


def resnet(tmp):
    names = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight")
    return folder(tmp, {name: np.ones((2, 2), np.float32) for name in names}, {**CONFIG, "architecture": "resnet50"})


def bert(tmp):
    names = ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight")
    return folder(tmp, {name: np.ones((2, 2), np.float32) for name in names}, {"model_type": "bert"})


def header(tmp, name, **change):
    """The folder with the safetensors entry of one array changed."""

    def rewrite(content):
        (size,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + size])
        entries[name] |= change
        text = json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return edit(tmp, rewrite)


def empty_folder(tmp):
    (tmp / "model").mkdir()
    return tmp / "model"


def shards(tmp):
    path = folder(tmp)
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(timm_arrays(), "../../etc/passwd")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return path


CASES = {
    "truncated_safetensors": (lambda tmp: edit(tmp, lambda b: b[:-40]), ("damaged", "download it again")),
    "safetensors_of_garbage": (
        lambda tmp: edit(tmp, lambda b: b[:9] + bytes(reversed(b[9:]))),
        ("damaged", "download it again"),
    ),
    "safetensors_claims_a_huge_header": (
        lambda tmp: edit(tmp, lambda b: struct.pack("<Q", 2**60) + b[8:]),
        ("damaged", "download"),
    ),
    "safetensors_with_a_wrong_shape": (lambda tmp: header(tmp, "norm.bias", shape=[4]), ("damaged",)),
    "safetensors_of_integers": (
        lambda tmp: folder(tmp, {**timm_arrays(), "norm.bias": np.zeros((8, 8), np.int64)}),
        ("norm.bias", "int64"),
    ),
    "not_finite": (
        lambda tmp: folder(tmp, {**timm_arrays(), "norm.bias": np.full(8, np.nan, np.float32)}),
        ("norm.bias", "not finite"),
    ),
    "array_missing": (
        lambda tmp: folder(tmp, without("blocks.0.attn.proj.weight")),
        ("missing", "blocks.0.attn.proj.weight"),
    ),
    "array_left_over": (
        lambda tmp: folder(tmp, {**timm_arrays(), "blocks.0.gate": np.ones(3, np.float32)}),
        ("blocks.0.gate",),
    ),
    "array_of_another_shape": (
        lambda tmp: folder(tmp, {**timm_arrays(), "norm.bias": np.zeros(9, np.float32)}),
        ("norm", "(9,)"),
    ),
    "posemb_of_another_size": (
        lambda tmp: folder(tmp, {**timm_arrays(), "pos_embed": np.zeros((1, 11, 8), np.float32)}),
        ("10 patches",),
    ),
    "heads_do_not_divide": (
        lambda tmp: folder(tmp, config={**CONFIG, "model_args": {**CONFIG["model_args"], "num_heads": 3}}),
        ("num_heads",),
    ),
    "another_architecture": (resnet, ("resnet", "ViT")),
    "a_language_model": (bert, ("bert", "of its networks only ViT")),
    "config_is_no_json": (lambda tmp: folder(tmp, config="{'a': "), ("config.json", "damaged")),
    "config_is_a_list": (lambda tmp: folder(tmp, config="[1]"), ("config.json", "list")),
    "config_of_other_types": (
        lambda tmp: folder(tmp, config={**CONFIG, "model_args": "patch_size=8"}),
        ("model_args",),
    ),
    "truncated_npz": (truncated_npz, ("damaged", "download it again")),
    "pickled_npz": (pickled_npz, ("pickled", "code")),
    "npz_of_another_program": (lambda tmp: npz(tmp, x=np.ones((3, 3), np.float32)), ("x", "expected")),
    "zip_without_arrays": (zip_of, ("model.npz",)),
    "empty_file": (lambda tmp: raw(tmp, b""), ("empty", "download it again")),
    "page_of_the_web": (lambda tmp: raw(tmp, b"<!DOCTYPE html><html>Forbidden"), ("web page",)),
    "text_file": (lambda tmp: raw(tmp, b"version https://git-lfs.github.com/spec/v1"), ("not a .npz",)),
    "pickled_pth": (lambda tmp: pth(tmp, {"model": Hostile(tmp / "ran")}), ("pickled", "code")),
    "old_pickle": (old_pickle, ("model.pth",)),
    "pth_without_weights": (lambda tmp: pth(tmp, {"epoch": 3}), ("no arrays",)),
    "truncated_pth": (lambda tmp: raw(tmp, pth(tmp, timm_tensors()).read_bytes()[:2000], "model.pth"), ("damaged",)),
    "empty_folder": (empty_folder, ("config.json",)),
    "shards_outside_the_folder": (shards, ("weight_map",)),
    "link_to_nothing": (lambda tmp: link(tmp), ("cannot be read",)),
}


def timm_tensors():
    return {name: torch.from_numpy(array) for name, array in timm_arrays().items()}


def link(tmp):
    (tmp / "model.npz").symlink_to(tmp / "gone")
    return tmp / "model.npz"


def refused(model, tmp, capsys, *says):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp / "image.png")
    before = sorted(tmp.rglob("*"))
    capsys.readouterr()
    code = vit(["predict", f"--model={model}", str(tmp / "image.png")])
    out, err = capsys.readouterr()
    assert code == 2, out + err
    assert err.startswith("error: "), err
    assert "Traceback" not in err
    assert not out
    assert len(err) < 2500, err
    for text in says:
        assert text in err, err
    assert sorted(tmp.rglob("*")) == before


@pytest.mark.parametrize(("kind", "says"), [("huge", "does not fit into memory"), ("encrypted", "cannot be unpacked")])
def test_an_archive_that_cannot_be_unpacked_is_reported(kind, says, tmp_path):
    header = io.BytesIO()
    shape = (10**13,) if kind == "huge" else (1,)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(4))
    content = bytearray((tmp_path / "model.npz").read_bytes())
    if kind == "encrypted":
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.find(signature) + flags] |= 1
    (tmp_path / "model.npz").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_arrays(tmp_path / "model.npz")


@pytest.mark.parametrize("name", CASES)
def test_damaged_or_wrong_model_is_refused(name, tmp_path, capsys):
    make, says = CASES[name]
    refused(make(tmp_path), tmp_path, capsys, *says)


def test_the_undamaged_model_predicts(tmp_path, capsys):
    model = folder(tmp_path)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "image.png")
    assert vit(["predict", f"--model={model}", str(tmp_path / "image.png")]) == 0
    assert vit(["predict", f"--model={pth(tmp_path, {'model': timm_tensors()})}", str(tmp_path / "image.png")]) in (
        0,
        2,
    )


def test_an_untrained_head_is_refused(tmp_path, capsys):
    zeros = {**timm_arrays(), "head.weight": np.zeros((3, 8), np.float32)}
    refused(folder(tmp_path, zeros), tmp_path, capsys, "untrained head", "Fine-tune")


def test_a_model_without_a_head_is_refused(tmp_path, capsys):
    bare = {name: array for name, array in timm_arrays().items() if not name.startswith("head")}
    config = {**CONFIG, "num_classes": 0, "model_args": {**CONFIG["model_args"], "num_classes": 0}}
    refused(folder(tmp_path, bare, config), tmp_path, capsys, "no head")


@pytest.mark.parametrize(
    ("reference", "says"),
    [("hf:nobody/nothing", "is not on the hub"), ("hf:nobody", "OWNER/NAME"), ("ViT-B_17", "No model at")],
)
def test_a_model_that_does_not_exist_is_reported(reference, says, tmp_path, capsys, monkeypatch):
    with serving({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        refused(reference, tmp_path, capsys, says)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
