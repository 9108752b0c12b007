import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from flax.traverse_util import unflatten_dict

from tests.peers import torch, transformers
from vit_jax import trees
from vit_jax.config import factory as configs
from vit_jax.pretrained import huggingface, wrappers
from vit_jax.pretrained.pretrained import Preprocessing
from vit_jax.types import UserError

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 77}
SMALL |= {"image_size": 32, "patch_size": 8, "num_labels": 5}
CASES = {
    "defaults": ("ViTForImageClassification", {"num_hidden_layers": 1, "num_labels": 10}),
    "small": ("ViTForImageClassification", SMALL),
    "gelu_new": ("ViTForImageClassification", SMALL | {"hidden_act": "gelu_new", "qkv_bias": False}),
    "quick_gelu": ("ViTForImageClassification", SMALL | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-3}),
    "oblong": ("ViTForImageClassification", SMALL | {"image_size": [32, 48], "patch_size": [8, 16], "num_channels": 1}),
    "pooler": ("ViTModel", SMALL | {"pooler_output_size": 20}),
    "teacher": ("DeiTForImageClassificationWithTeacher", SMALL),
    "one head": ("DeiTForImageClassification", SMALL),
}  # fmt: skip
IMAGES = Preprocessing((32, 32), (32, 32), "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def perturbed(kind, fields):
    """A transformers model with random parameters and logits of unit scale."""
    config = {"V": transformers.ViTConfig, "D": transformers.DeiTConfig}[kind[0]](**fields)
    with torch.device("meta"):  # initialization takes seconds
        model = getattr(transformers, kind)(config)
    return perturbed_weights(model.to_empty(device="cpu").eval())


def perturbed_weights(model):
    """The model with random parameters with which its outputs are of unit scale."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in key and key.endswith("weight"):
                noise = 1 + 0.2 * noise
            elif parameter.ndim > 1 and key.endswith("weight"):
                noise /= parameter[0].numel() ** 0.5
            else:
                noise *= 0.5
            parameter.copy_(noise)
    return model


def logits_of(model, images):
    with torch.no_grad():
        out = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return (out.logits if hasattr(out, "logits") else out.pooler_output).numpy()


def ours(spec, params, images):
    """The outputs of this library's model with these weights."""
    model = configs.build(spec, "model")
    return np.asarray(jax.jit(model.apply)({"params": unflatten_dict(params, sep="/")}, images))


def read(folder):
    arrays, _ = wrappers.unwrap(safetensors.numpy.load_file(folder / "model.safetensors"), "the model")
    config = json.loads((folder / "config.json").read_text())
    if (folder / "preprocessor_config.json").exists():
        config["preprocessor"] = json.loads((folder / "preprocessor_config.json").read_text())
    assert huggingface.matches(arrays, config)
    return huggingface.read(arrays, config, "the model")


def images_of(source):
    images = source.preprocessing
    return np.random.default_rng(0).standard_normal((1, *images.size, len(images.mean)), np.float32)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A transformers model, its state dict as read, images, and the outputs of both libraries."""
    kind, fields = CASES[request.param]
    model = perturbed(kind, fields)
    config = json.loads(model.config.to_json_string()) | {"model_type": model.config.model_type}
    arrays = safetensors.numpy.load(safetensors.torch.save(model.state_dict()))
    assert huggingface.matches(arrays, config)
    source = huggingface.read(arrays, config, "the model")
    assert sum(x.size for x in source.params.values()) == sum(x.size for x in arrays.values())
    images = images_of(source)
    return model, source, images, logits_of(model, images), ours(source.model, source.params, images)


def test_logits_equal_transformers(case):
    _, _, _, expected, found = case
    assert 0.2 < expected.std() < 5
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_positions_are_resized_as_transformers_does(case):
    assert case[1].posemb == "bicubic_no_antialias"


def test_names_in_memory_and_on_disk_read_as_the_same_model(case, tmp_path):
    model, source, *_ = case
    model.save_pretrained(tmp_path)
    again = read(tmp_path)
    assert again.model == source.model
    assert {name: x.tobytes() for name, x in again.params.items()} == {
        name: x.tobytes() for name, x in source.params.items()
    }


def load(folder):
    """Load a folder by transformers and check that no arrays are missing or unexpected."""
    (kind,) = json.loads((folder / "config.json").read_text())["architectures"]
    auto = transformers.AutoModel if kind == "ViTModel" else transformers.AutoModelForImageClassification
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


EXPORTED = sorted(CASES.keys() - {"one head"})


@pytest.mark.parametrize("case", EXPORTED, indirect=True)
def test_transformers_loads_what_we_export(case, tmp_path):
    _, source, images, _, expected = case
    huggingface.write(tmp_path / "out", source.model, source.params, source.preprocessing, source.class_names)
    np.testing.assert_allclose(logits_of(load(tmp_path / "out"), images), expected, rtol=0, atol=2e-5)
    again = read(tmp_path / "out")
    assert again.model == source.model
    assert again.preprocessing == source.preprocessing
    assert {name: x.tobytes() for name, x in again.params.items()} == {
        name: x.tobytes() for name, x in source.params.items()
    }


VIT = {"type": "vit.ViT", "num_classes": 2, "width": 48, "depth": 1, "mlp_dim": 77, "num_heads": 3, "patch_size": 8}


def random_params(spec):
    model = configs.build(spec, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    rng = np.random.default_rng(0)
    return {
        name: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in trees.flatten(shapes).items()
    }


@pytest.mark.parametrize("fields", [{"posemb": "sincos2d"}, {"embed_bias": False}, {"distilled": True}])
def test_models_of_this_library_are_exported(fields, tmp_path):
    spec = VIT | fields
    params = random_params(spec)
    assert huggingface.write(tmp_path / "out", spec, params, IMAGES, ("cat", "dog")) == []
    model = load(tmp_path / "out")
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(logits_of(model, images), ours(spec, params, images), rtol=0, atol=2e-5)
    assert model.config.id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    "fields",
    [
        *({"pool": pool, "class_token": True} for pool in ("gap", "map")),
        *({field: True} for field in ("norm_after_pool", "pre_norm", "qk_norm")),
        {"registers": 4},
        {"layer_scale": 0.1},
        {"posemb": "none"},
        {"posemb_prefix": False},
        {"mlp": "swiglu"},
        {"rope": {"type": "Mixed"}, "posemb": "none", "num_classes": 0, "layer_scale": 0.1},
        {"relative_bias": "blocks", "distilled": True},
        {"mask_token": True},
        *({field: True} for field in ("post_norm", "attn_norm", "mlp_norm")),
        {"rep_size": 8},
        {"stride": 4},
        {"padding": "same"},
        {"stem": {"type": "resnet.ResNet", "stages": [1]}},
        {"type": "mixer.Mixer"},
    ],
    ids=str,
)
def test_models_that_transformers_cannot_represent_are_refused_before_writing(fields, tmp_path):
    with pytest.raises(UserError, match=rf"model\.{next(iter(fields))}="):
        huggingface.write(tmp_path / "out", VIT | fields, {}, IMAGES, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stated", "prepared"),
    [
        ({}, ((32, 32), "bilinear")),
        ({"size": 32, "resample": 3}, ((32, 32), "bicubic")),
        (
            {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32},
            (36, "bilinear"),
        ),
    ],
)
def test_preprocessing_follows_the_preprocessor_config(stated, prepared):
    model = perturbed("ViTForImageClassification", SMALL)
    arrays = {name: x.numpy() for name, x in model.state_dict().items()}
    config = SMALL | {"model_type": "vit", "preprocessor": stated}
    found = huggingface.read(arrays, config, "it")
    assert (found.preprocessing.resized, found.preprocessing.method) == prepared
    assert found.preprocessing.size == (32, 32)
    assert bool(found.notes) == (not stated)


def test_class_names_are_read_but_not_placeholders():
    model = perturbed("ViTForImageClassification", SMALL | {"num_labels": 2})
    arrays = {name: x.numpy() for name, x in model.state_dict().items()}
    config = SMALL | {"model_type": "vit"}
    for labels, names in (({"1": "dog", "0": "cat"}, ("cat", "dog")), ({"0": "LABEL_0", "1": "LABEL_1"}, None)):
        assert huggingface.read(arrays, config | {"id2label": labels}, "it").class_names == names


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"model_type": "swin"}, "is a 'swin' of transformers"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"num_attention_heads": 5}, "48, which is not divisible by num_attention_heads=5"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps='tiny'"),
        ({"image_size": 64}, "image_size=64"),
        ({"preprocessor": {"resample": 9}}, "resample=9"),
        ({"preprocessor": {"image_mean": [0.5]}}, "image_mean=\\(0.5,\\)"),
    ],
)
def test_an_invalid_config_is_reported(part, message):
    model = perturbed("ViTForImageClassification", SMALL)
    arrays = {name: x.numpy() for name, x in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        huggingface.read(arrays, SMALL | {"model_type": "vit"} | part, "it")


def test_assumptions_without_a_config_are_noted():
    model = perturbed("ViTForImageClassification", SMALL | {"hidden_size": 64, "num_attention_heads": 2})
    found = huggingface.read({name: x.numpy() for name, x in model.state_dict().items()}, {}, "it")
    assert "num_heads=1, mlp='gelu', norm_eps=1e-12" in found.notes[0]
    assert "preprocessor_config.json" in found.notes[1]
