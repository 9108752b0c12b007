import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.config import factory as config
from vit_jax.pretrained import google
from vit_jax.pretrained.pretrained import Preprocessing
from vit_jax.pretrained.tensors import read_arrays
from vit_jax.types import UserError

HALF = (0.5, 0.5, 0.5)
SQUARE = Preprocessing((32, 32), (32, 32), "bilinear", HALF, HALF)
VIT = {"type": "vit.ViT", "num_classes": 7, "width": 32, "depth": 2, "mlp_dim": 48, "num_heads": 4, "patch_size": 8}
STEM = {"type": "resnet.ResNet", "stages": [2, 1], "width": 32}
HYBRID = VIT | {"patch_size": 1, "stem": STEM}
MIXER = {
    **{"type": "mixer.Mixer", "num_classes": 7, "width": 32, "depth": 2, "patch_size": 8},
    **{"tokens_mlp_dim": 24, "channels_mlp_dim": 48},
}
GAP, MAP, REP = VIT | {"pool": "gap"}, VIT | {"pool": "map"}, VIT | {"rep_size": 20}
MODELS = {"tok": VIT, "gap": GAP, "map": MAP, "rep": REP, "hybrid": HYBRID, "mixer": MIXER}


def random_params(spec: dict, size: int = 32) -> dict[str, np.ndarray]:
    model, rng = config.build(spec, "model"), np.random.default_rng(0)
    images = jnp.zeros((1, size, size, 3))
    shapes = trees.flatten(jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"])
    return {n: rng.normal(n.endswith("scale"), 0.2, x.shape).astype(np.float32) for n, x in shapes.items()}


def logits(spec: dict, params: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    model = config.build(spec, "model")
    return np.asarray(jax.jit(lambda p, x: model.apply({"params": p}, x))(trees.nest(params), jnp.asarray(images)))


def random_images(size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


def written(path, spec, params=None, preprocessing=SQUARE) -> dict[str, np.ndarray]:
    google.write(path, spec, random_params(spec) if params is None else params, preprocessing, None)
    return read_arrays(path)[0]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize("name", MODELS)
def test_a_written_model_reads_back_the_same(name, tmp_path):
    spec, params = MODELS[name], random_params(MODELS[name])
    arrays = written(tmp_path / "a.npz", spec, params)
    assert google.matches(arrays, {})
    read = google.read(arrays, {}, "a.npz")
    assert_same(read.params, params)
    assert read.model.items() >= {key: value for key, value in spec.items() if key != "stem"}.items()
    assert read.model.get("stem", {}).items() >= spec.get("stem", {}).items()
    assert read.preprocessing.size == (32, 32)


# Layouts

PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}


def big_vision(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the original's arrays to big_vision's current names."""

    def rename(name: str) -> str:
        name = name.removeprefix("params/").replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
        if name.startswith("Transformer/encoderblock_"):
            for linen, older in PRE_LINEN.items():
                name = name.replace(f"/{older}/", f"/{linen}/")
        return name

    return {rename(name): array for name, array in arrays.items()}


def under(prefix: str, arrays: dict[str, np.ndarray], **others) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": array for name, array in arrays.items()} | {
        name.replace("__", "/"): np.ones(2, np.float32) for name in others
    }


def scanned(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first, stem = "Transformer/encoderblock_0/", "Transformer/encoderblock"
    rest = {name: array for name, array in arrays.items() if not name.startswith(f"{stem}_")}
    return rest | {
        f"{stem}/{name.removeprefix(first)}": np.stack([arrays[name], arrays[name.replace("block_0/", "block_1/")]])
        for name in arrays
        if name.startswith(first)
    }


def positions_in_the_encoder(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace("pos_embedding", "Transformer/pos_embedding"): array for name, array in arrays.items()}


def inlined_head(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace("MAPHead_0/", ""): array for name, array in arrays.items()}


def old_group_norms(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x.reshape(1, 1, 1, -1) if re.search(r"\bgn", name) else x for name, x in arrays.items()}


@pytest.mark.parametrize(
    ("spec", "layout"),
    [
        (VIT, big_vision),
        (
            VIT | {"posemb_prefix": False},
            lambda a: big_vision(a) | {"pos_embedding": big_vision(a)["pos_embedding"][:, 1:]},
        ),
        (VIT, lambda a: under("params/", a, opt__mu__cls=0)),
        (VIT, lambda a: under("opt/target/", a, opt__state__step=0)),
        (GAP, lambda a: under("params/", scanned(big_vision(a)))),
        (GAP, lambda a: positions_in_the_encoder(big_vision(a))),
        (
            MAP,
            lambda a: under("params/img/", scanned(big_vision(a)), params__txt__head__bias=0, params__t=0, params__b=0),
        ),
        (MAP, lambda a: under("opt/target/", inlined_head(big_vision(a)))),
        (GAP, lambda a: under("img/", a, txt__probe=0, t=0)),
        (HYBRID, old_group_norms),
        (HYBRID, lambda a: under("opt/target/", big_vision(old_group_norms(a)))),
        (MIXER, lambda a: under("params/", a)),
    ],
    ids=[
        *(
            "linen",
            "no slot",
            "params",
            "opt target",
            "scanned",
            "encoder positions",
            "img tower",
            "inlined head",
            "lit",
        ),
        *("group norms", "big_vision hybrid", "mixer params"),
    ],
)
def test_every_layout_reads_as_the_same_model(spec, layout, tmp_path):
    params = random_params(spec)
    arrays = layout(written(tmp_path / "a.npz", spec, params))
    read = google.read(arrays, {}, "a.npz")
    assert google.matches(arrays, {})
    assert_same(read.params, params)
    assert read.model["num_classes"] == 7


def test_bfloat16_arrays_that_numpy_saves_as_raw_bytes_are_read(tmp_path):
    params = {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in random_params(VIT).items()}
    arrays = written(tmp_path / "a.npz", VIT, params)
    np.savez(tmp_path / "b.npz", **{name: x.astype(ml_dtypes.bfloat16) for name, x in arrays.items()})
    assert np.load(tmp_path / "b.npz")["cls"].dtype == np.dtype("V2")
    assert_same(google.read(read_arrays(tmp_path / "b.npz")[0], {}, "b.npz").params, params)


def test_other_trees_of_the_file_are_noted(tmp_path):
    arrays = under(
        "params/img/", big_vision(written(tmp_path / "a.npz", MAP)), params__txt__a=0, params__t=0, opt__mu=0
    )
    assert "Not loaded from the file: opt, params/t, params/txt." in google.read(arrays, {}, "a.npz").notes


def test_without_positions_they_are_sincos2d_for_224_pixels(tmp_path):
    arrays = under("params/", big_vision(written(tmp_path / "a.npz", GAP)))
    del arrays["params/pos_embedding"]
    read = google.read(arrays, {}, "a.npz")
    assert read.model["posemb"] == "sincos2d"
    assert "posemb/table" not in read.params
    assert read.preprocessing.spec == "resize_small(256, 'box')|central_crop(224)"


def test_positions_and_patches_are_resized_as_the_original_and_big_vision_do(tmp_path):
    read = google.read(written(tmp_path / "a.npz", VIT), {}, "a.npz")
    assert (read.posemb, read.patches) == ("bilinear", "bilinear")


def test_preprocessing_equals_the_authors(tmp_path):
    arrays = written(tmp_path / "a.npz", VIT)
    assert google.read(arrays, {}, "a.npz").preprocessing.spec == "resize(32)"
    assert google.read(under("params/", big_vision(arrays)), {}, "a.npz").preprocessing.resized == 37


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.pop("Transformer/encoderblock_0/LayerNorm_2/bias"),
            "missing: Transformer/encoderblock_0/LayerNorm_1/bias",
        ),
        (lambda a: a.pop("embedding/kernel"), "a.npz has no array embedding/kernel"),
        (lambda a: a.update({"extra": np.ones(3)}), "unexpected: extra"),
        (lambda a: a.update({"embedding/kernel": np.ones((192, 32))}), "embedding/kernel of shape"),
        (
            lambda a: a.update({"Transformer/posembed_input/pos_embedding": np.ones((1, 14, 32))}),
            "14 position embeddings",
        ),
    ],
    ids=["missing", "no images", "unknown", "flat patches", "no square"],
)
def test_other_files_are_refused(change, message, tmp_path):
    arrays = written(tmp_path / "a.npz", VIT)
    change(arrays)
    with pytest.raises(UserError, match=message):
        google.read(arrays, {}, "a.npz")


# Writing


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("registers", 4),
            ("distilled", True),
            ("layer_scale", 0.1),
            ("rope", {"type": "Axial"}),
            ("relative_bias", "blocks"),
            *((field, True) for field in ("mask_token", "post_norm", "attn_norm", "mlp_norm")),
            ("qk_norm", True),
            ("mlp", "swiglu"),
            ("pre_norm", True),
        ),
        *(("qkv_bias", False), ("embed_bias", False), ("norm_after_pool", True), ("stride", 4), ("padding", "same")),
    ],
)
def test_unsupported_fields_are_refused_by_name(field, value, tmp_path):
    with pytest.raises(UserError, match=rf"model\.{field}=.*--to="):
        google.write(tmp_path / "a.npz", VIT | {field: value}, {}, SQUARE, None)
    assert not list(tmp_path.iterdir())


def test_a_fixed_table_needs_the_image_size(tmp_path):
    with pytest.raises(UserError, match=r"model\.posemb='sincos2d'"):
        google.write(tmp_path / "a.npz", VIT | {"posemb": "sincos2d"}, {}, None, None)


def test_what_the_file_cannot_express_is_noted(tmp_path):
    spec = VIT | {"mlp": "gelu", "norm_eps": 1e-12}
    notes = " ".join(google.write(tmp_path / "a.npz", spec, random_params(VIT), SQUARE, ("a",) * 7))
    for text in ("mlp='gelu'", "norm_eps=1e-12", "7 classes", "resize(32)"):
        assert text in notes


def test_an_existing_file_is_kept(tmp_path):
    (tmp_path / "a.npz").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        written(tmp_path / "a.npz", VIT)
    assert (tmp_path / "a.npz").read_text() == "mine"
