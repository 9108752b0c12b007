"""Exported programs, of every kind of network, compared with the model that they were made of."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import sampled
from tests.explain.helpers import network
from vit_jax import sharding
from vit_jax.__main__ import main as vit
from vit_jax.data.photographs import crops
from vit_jax.data.transforms.preprocess import parse
from vit_jax.export import onnx, program, readme, resize, stablehlo
from vit_jax.export.export import Check, distance, export, passed
from vit_jax.layers import attend, ops
from vit_jax.pretrained.pretrained import from_spec
from vit_jax.types import UserError

SHALLOW = {"depth": 1}
KINDS = {
    "class token, registers": {**SHALLOW, "registers": 2},
    "average": {**SHALLOW, "pool": "gap", "norm_after_pool": True, "qk_norm": True, "layer_scale": 0.1},
    "attention pooling": {**SHALLOW, "pool": "map"},
    "distilled": {**SHALLOW, "distilled": True},
    "scan, remat": {"depth": 2, "scan": True, "remat": "full"},
    "rotary, swiglu": {**SHALLOW, "posemb": "none", "rope": {"type": "vit_jax.layers.rope:Axial"}, "mlp": "swiglu"},
    "mixer": {
        "type": "mixer.Mixer",
        "width": 8,
        "depth": 1,
        "tokens_mlp_dim": 8,
        "channels_mlp_dim": 16,
        "patch_size": 4,
    },
    "hybrid": {**SHALLOW, "patch_size": 1, "stem": {"type": "resnet.ResNet", "stages": (1,), "width": 32}},
    "swin": {"type": "swin.Swin", "width": 8, "depths": (2,), "num_heads": (2,), "window": 2, "patch_size": 4},
}
MORE = {
    "relative bias": {"relative_bias": "blocks"},
    "shared relative bias": {"relative_bias": "shared"},
    "mixed rotary": {"rope": {"type": "vit_jax.layers.rope:Mixed"}, "posemb": "none"},
    "swin of two stages": KINDS["swin"] | {"depths": (2, 2), "num_heads": (2, 2), "patch_size": 2},
    "swin, version 2": KINDS["swin"] | {"version": 2},
    "a tanh layer, a norm before": {"rep_size": 8, "pre_norm": True, "attn_norm": True, "mlp_norm": True},
}


def loaded(fields):
    whole = "width" in fields
    return network(fields if whole else None, **({} if whole else fields)).loaded


def images(model, count=7):
    return crops(count, model.image_shape)


def check(form, fields, path):
    model = loaded(fields)
    made = program.build("model", model, ["logits", "features"])
    form.write(made, path)
    batch = images(model)
    expected = model.predict({"image": batch})
    for size in (1, 7):
        found = form.run(path, batch[:size])
        for name in ("logits", "features"):
            assert np.abs(found[name] - expected[name][:size]).max() <= 1e-4
    assert np.ptp(expected["logits"], axis=0).min() > 1e-3  # which images are there makes a difference


@pytest.mark.parametrize("kind", sampled(KINDS, *[*KINDS][::2]))
def test_stablehlo_computes_what_the_model_does(kind, tmp_path):
    check(stablehlo, KINDS[kind], tmp_path / stablehlo.FILE)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_computes_what_the_model_does(kind, tmp_path):
    check(onnx, KINDS[kind], tmp_path / onnx.FILE)


@pytest.mark.torture
@pytest.mark.parametrize("kind", MORE)
def test_both_compute_what_rarer_models_do(kind, tmp_path):
    check(stablehlo, MORE[kind], tmp_path / stablehlo.FILE)
    check(onnx, MORE[kind], tmp_path / onnx.FILE)


def test_attention_is_that_of_every_block(tmp_path):
    model = loaded({"depth": 2})
    made = program.build("model", model, ["attention"])
    batch = images(model)
    expected = network(depth=2).attention(lambda blocks, _: jax.numpy.stack(blocks, 1), batch)
    for form in (stablehlo, onnx):
        form.write(made, tmp_path / form.FILE)
        found = form.run(tmp_path / form.FILE, batch)["attention"]
        assert found.shape == (7, 2, 2, 17, 17)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_exported_on_a_cpu_is_read_for_tpus(tmp_path):
    model = loaded(SHALLOW)
    made = program.build("model", model, dtype="bfloat16")
    stablehlo.write(made, tmp_path / stablehlo.FILE)
    batch = images(model)
    np.testing.assert_array_equal(stablehlo.run(tmp_path / stablehlo.FILE, batch)["logits"], made(batch)["logits"])
    read = jax.export.deserialize(bytearray((tmp_path / stablehlo.FILE).read_bytes()))
    assert read.platforms == ("cpu", "cuda", "tpu")
    text = read.mlir_module()
    # Products in bfloat16 for TPUs, and in float32 for CPUs.
    assert re.search(r"dot_general.*bf16>\) -> tensor<\S*xbf16>", text)
    assert re.search(r"dot_general.*-> tensor<\S*xf32>", text)


def test_no_platform_is_chosen_while_a_program_is_traced_for_all(monkeypatch):
    for module in (attend, sharding):
        monkeypatch.setattr(module, "platform", lambda: "tpu")
    assert attend.choose("auto", 17, whole=True) == "pallas"
    with sharding.every_platform():
        assert attend.choose("auto", 17, whole=True) == "plain"
    x = jax.numpy.ones((2, 4), "bfloat16")
    y = jax.numpy.ones((4, 3), "bfloat16")
    with sharding.every_platform():
        assert "platform_index" in str(jax.make_jaxpr(lambda x, y: ops.linear(x, y))(x, y))
    assert "platform_index" not in str(jax.make_jaxpr(lambda x, y: ops.linear(x, y))(x, y))


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("resize(16)", [(61, 40), (16, 16)]),
        ("resize_small(20, 'bicubic')|central_crop(16)", [(61, 40), (37, 90), (21, 20)]),
        ("resize_small(20, 'bicubic', rule='torchvision')|central_crop(16, rule='torchvision')", [(61, 40), (33, 47)]),
        ("resize_small((18, 20), rule='torchvision')|central_crop(16, rule='torchvision')", [(61, 40), (33, 47)]),
    ],
)
def test_resizing_inside_is_within_two_grey_levels_of_that_outside(spec, sizes):
    for size in sizes:
        picture = crops(1, (*size, 3))
        found = resize.resized(jax.numpy.asarray(picture), from_spec(spec, (0.5,), (0.5,)))
        apart = np.abs(np.asarray(found[0], int) - parse(spec).image(picture[0]))
        assert apart.max() <= 2
        assert apart.mean() < 0.5


def test_images_of_any_size_go_into_one_program(tmp_path):
    model = dataclasses.replace(loaded(SHALLOW), preprocess_spec="resize_small(20)|central_crop(16)")
    made = program.build("model", model, any_size=True)
    stablehlo.write(made, tmp_path / stablehlo.FILE)
    for count, size in ((1, (61, 40)), (3, (24, 90))):
        batch = crops(count, (*size, 3))
        outside = model.predict({"image": np.stack([model.preprocess(image) for image in batch])})["logits"]
        assert np.abs(stablehlo.run(tmp_path / stablehlo.FILE, batch)["logits"] - outside).max() < 0.05 * np.ptp(
            outside
        )


BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize(
    ("to", "blocked", "spec"),
    [
        ("onnx", ("vit_jax", "jax", "flax", "torch"), "resize_small(20, 'bicubic')|central_crop(16)"),
        ("stablehlo", ("vit_jax", "flax", "torch"), "resize(16)"),
    ],
)
def test_the_readme_loads_it_where_vit_jax_is_not_installed(to, blocked, spec, tmp_path):
    model = dataclasses.replace(loaded(SHALLOW), preprocess_spec=spec)
    assert all(map(passed, export("model", model, tmp_path, to).values()))
    photograph = Image.fromarray(crops(1, (70, 41, 3))[0])
    photograph.save(tmp_path / "photo.png")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)[1]
    code = code.replace("photo.jpg", "photo.png") + "\nprint(result.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    name, logits = done.stdout.splitlines()[-2:]
    expected = model(photograph)["logits"][0]
    np.testing.assert_allclose(json.loads(logits), expected, atol=1e-4)
    assert name == model.class_names[expected.argmax()]


@pytest.mark.parametrize(
    "spec",
    [
        "resize(16)",
        "resize((16, 16), 'lanczos')|central_crop(12)",
        "resize_small(20)|central_crop(16)",
        "resize_small(21, 'bicubic', rule='torchvision')|central_crop(16, rule='torchvision')",
        "resize_small(21, rule='transformers')|central_crop(16, rule='transformers')",
        "resize_small((18, 20))|central_crop(16)",
        "central_crop(16)",
    ],
)
def test_the_lines_of_pillow_prepare_images_as_the_model_does(spec):
    for size in ((61, 40), (37, 90), (33, 21)):
        picture = crops(1, (*size, 3))[0]
        names = {"image": Image.fromarray(picture), "Image": Image, "np": np}
        exec("\n".join(readme.pillow_lines(from_spec(spec, (0.5,), (0.5,)))), names)
        np.testing.assert_array_equal(np.asarray(names["image"]), parse(spec).image(picture))


def test_int8_states_how_far_it_agrees(tmp_path):
    model = loaded(SHALLOW)
    checks = export("model", model, tmp_path, "onnx", int8=True, images=images(model, 20))
    facts = json.loads((tmp_path / "export.json").read_text())["files"]["model_int8.onnx"]
    found = onnx.run(tmp_path / "model_int8.onnx", images(model, 20))["logits"]
    expected = model.predict({"image": images(model, 20)})["logits"]
    assert facts["agreement"]["same_largest"] == np.mean(found.argmax(1) == expected.argmax(1))
    assert 0.9 < facts["agreement"]["mean_cosine"] < 1
    assert f"{facts['agreement']['mean_cosine']:.4f}" in (tmp_path / "README.md").read_text()
    assert passed(checks["model_int8.onnx"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx", "dtype": "bfloat16"}, "ONNX takes float32"),
        ({"to": "onnx", "any_size": True}, "ONNX takes float32"),
        ({"to": "onnx", "int8": True}, "give image files"),
        ({"to": "stablehlo", "outputs": ["logit"]}, "gives features, logits, probs, tokens, attention"),
        ({"to": "stablehlo", "any_size": True}, "expected a resize"),
    ],
)
def test_what_does_not_exist_is_refused(options, message, tmp_path):
    model = dataclasses.replace(loaded(SHALLOW), preprocess_spec="central_crop(16)")
    with pytest.raises(UserError, match=message):
        export("model", model, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_fails_the_check():
    for wrong in (np.nan, np.inf):
        found = distance({"logits": np.ones((2, 3))}, {"logits": np.full((2, 3), wrong)})
        assert not passed(Check(2, "given", found, 1e-4))
        assert "NaN" not in json.dumps(found, allow_nan=False)


def test_a_network_without_attention_exports_none():
    with pytest.raises(UserError, match="no attention"):
        program.build("model", loaded(KINDS["mixer"]), ["attention"])


def test_weights_beyond_a_protobuf_go_beside_it(tmp_path, monkeypatch):
    model = network(width=64).loaded
    made = program.build("model", model)
    monkeypatch.setattr(onnx, "MOST_BYTES", 1000)
    monkeypatch.setattr(stablehlo, "MOST_BYTES", 1000)
    onnx.write(made, tmp_path / onnx.FILE)
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.9 * made.size
    found = onnx.run(tmp_path / onnx.FILE, images(model))["logits"]
    np.testing.assert_allclose(found, model.predict({"image": images(model)})["logits"], atol=1e-4)
    with pytest.raises(UserError, match="export in bfloat16"):
        stablehlo.write(made, tmp_path / stablehlo.FILE)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no exported program"):
        stablehlo.run(tmp_path / "x", np.zeros((1, 16, 16, 3), np.uint8))


def test_the_command_exports_and_checks(tmp_path, capsys):
    assert vit(["export", "--model=tests/workdirs/plain", "--to=stablehlo", f"--out={tmp_path / 'new'}"]) == 0
    assert "OK: " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"README.md", "export.json", stablehlo.FILE}
