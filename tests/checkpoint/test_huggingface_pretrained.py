"""transformers' networks that learn without labels: the same tokens from their weights, and from ours in their format."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from flax.traverse_util import unflatten_dict

from tests.checkpoint.test_huggingface import perturbed_weights, read
from tests.peers import torch, transformers
from vit_jax import trees
from vit_jax.config import factory
from vit_jax.pretrained import huggingface, wrappers
from vit_jax.pretrained.pretrained import Preprocessing
from vit_jax.types import UserError

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
MLP = SIZES | {"intermediate_size": 80}
OBLONG = {"image_size": [32, 48]}
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
CASES = {
    "DINOv2": ("Dinov2Model", SIZES | {"mlp_ratio": 2}),
    "DINOv2 giant": ("Dinov2Model", SIZES | {"use_swiglu_ffn": True, "use_mask_token": False}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", SIZES | {"num_register_tokens": 3}),
    "DINOv2 giant with registers": ("Dinov2WithRegistersModel", SIZES | {"use_swiglu_ffn": True}),
    "DINOv3": ("DINOv3ViTModel", MLP | OBLONG | {"num_register_tokens": 4, "pos_embed_jitter": 1.5}),
    "DINOv3 plus": ("DINOv3ViTModel", MLP | {"use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0}),
    "DINOv3 7B": ("DINOv3ViTModel", MLP | {"query_bias": False, "value_bias": False, "num_register_tokens": 1}),
    "I-JEPA": ("IJepaModel", MLP),
    "I-JEPA's classifier": ("IJepaForImageClassification", MLP | {"num_labels": 5}),
    "MAE": ("ViTMAEModel", MLP | {"mask_ratio": 0.0}),
    "MAE with its decoder": ("ViTMAEForPreTraining", MLP | DECODER | {"mask_ratio": 0.0}),
    "BEiT": ("BeitForImageClassification", MLP | {"use_relative_position_bias": True, "num_labels": 5}),
    "BEiT's tokens": (
        "BeitForMaskedImageModeling",
        MLP | {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 7},
    ),
    "BEiT with positions": (
        "BeitModel",
        MLP | {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0, "use_mean_pooling": False},
    ),
}
WITHOUT_A_WRITER = ("MAE", "MAE with its decoder", "BEiT's tokens")


def perturbed(kind, fields):
    config = getattr(transformers, kind).config_class(**fields)
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    # Rotary frequencies are not parameters: transformers fills them in again.
    model = model.to_empty(device="cpu").eval()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = type(module)(config).inv_freq
    return perturbed_weights(model)


def theirs(model, images):
    """Tokens after the last norm, and the logits of a classifier or None."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    base = model.base_model if model.base_model_prefix != "model" else model
    with torch.no_grad():
        if isinstance(base, transformers.ViTMAEModel):
            n = base.embeddings.num_patches if hasattr(base.embeddings, "num_patches") else 16
            tokens = base(pixels, noise=torch.arange(n).float()[None]).last_hidden_state
        else:
            tokens = base(pixels).last_hidden_state
        if type(model).__name__ == "BeitForMaskedImageModeling":
            tokens = model.layernorm(tokens)
        logits = model(pixels).logits.numpy() if "ImageClassification" in type(model).__name__ else None
    return tokens.numpy(), logits


def ours(source, images):
    model = factory.build(source.model, "model")
    params = {"params": unflatten_dict(source.params, sep="/")}
    features = jax.jit(lambda p, x: model.apply(p, x, method="features")["tokens"])
    return np.asarray(features(params, images)), np.asarray(jax.jit(model.apply)(params, images))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    kind, fields = CASES[request.param]
    model = perturbed(kind, fields)
    config = json.loads(model.config.to_json_string()) | {"model_type": model.config.model_type}
    arrays, _ = wrappers.unwrap(safetensors.numpy.load(safetensors.torch.save(model.state_dict())), "the model")
    assert huggingface.matches(arrays, config)
    source = huggingface.read(arrays, config, "the model")
    images = np.random.default_rng(0).standard_normal((1, *source.preprocessing.size, 3), np.float32)
    return request.param, model, source, images, theirs(model, images)


def test_tokens_and_logits_equal_transformers(case):
    _, _, source, images, (tokens, logits) = case
    found, output = ours(source, images)
    assert 0.1 < tokens.std() < 20
    np.testing.assert_allclose(found, tokens, rtol=0, atol=1e-4)
    if logits is not None:
        np.testing.assert_allclose(output, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["DINOv2", "DINOv2 with registers"])
def test_the_images_of_a_processor_need_not_have_the_size_of_the_positions(name):
    """As in facebook/dinov2-small, whose processor crops to 224 pixels where its table is for 518."""
    kind, fields = CASES[name]
    model = perturbed(kind, fields)
    config = json.loads(model.config.to_json_string()) | {"model_type": model.config.model_type}
    crop = {"do_center_crop": True, "crop_size": {"height": 24, "width": 40}, "size": {"shortest_edge": 32}}
    config["preprocessor"] = {"image_processor_type": "BitImageProcessor", **crop}
    arrays, _ = wrappers.unwrap(safetensors.numpy.load(safetensors.torch.save(model.state_dict())), "the model")
    source = huggingface.read(arrays, config, "the model")
    assert source.preprocessing.size == (24, 40)
    assert any("resized to those of (24, 40)" in note for note in source.notes)
    images = np.random.default_rng(0).standard_normal((1, 24, 40, 3), np.float32)
    np.testing.assert_allclose(ours(source, images)[0], theirs(model, images)[0], rtol=0, atol=1e-4)


def test_names_on_disk_read_as_the_same_model(case, tmp_path):
    _, model, source, *_ = case
    model.save_pretrained(tmp_path)
    again = read(tmp_path)
    assert again.model == source.model
    assert {name: x.tobytes() for name, x in again.params.items()} == {
        name: x.tobytes() for name, x in source.params.items()
    }


@pytest.mark.parametrize("case", [name for name in CASES if name not in WITHOUT_A_WRITER], indirect=True)
def test_transformers_loads_what_we_export(case, tmp_path):
    name, model, source, images, (tokens, logits) = case
    huggingface.write(tmp_path / "out", source.model, source.params, source.preprocessing, source.class_names)
    again, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert again.config.model_type == model.config.model_type
    found = theirs(again.eval(), images)
    np.testing.assert_allclose(found[0], tokens, rtol=0, atol=1e-4)
    if logits is not None:
        np.testing.assert_allclose(found[1], logits, rtol=0, atol=1e-4)
    assert read(tmp_path / "out").model == source.model, name


PUBLISHED = {
    # Widths and heads of the authors' models: arXiv:2304.07193 table 10, arXiv:2508.10104 table 2.
    "dinov2-giant": ("Dinov2Model", {"hidden_size": 1536, "num_attention_heads": 24, "use_swiglu_ffn": True, "image_size": 518, "patch_size": 14}),
    "dinov2-with-registers-small": ("Dinov2WithRegistersModel", {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}),
    "dinov3-vit7b16": ("DINOv3ViTModel", {"hidden_size": 4096, "intermediate_size": 8192, "num_attention_heads": 32, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False}),
    "dinov3-vits16": ("DINOv3ViTModel", {"num_register_tokens": 4}),
    "vit-mae-huge": ("ViTMAEForPreTraining", {"hidden_size": 1280, "num_attention_heads": 16, "intermediate_size": 5120, "patch_size": 14}),
    "ijepa_vith14_1k": ("IJepaModel", {"hidden_size": 1280, "num_attention_heads": 16, "intermediate_size": 5120, "patch_size": 14}),
    "beit-large-patch16-512": ("BeitForImageClassification", {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "image_size": 512, "use_relative_position_bias": True, "num_labels": 1000}),
}  # fmt: skip


def test_biases_of_a_grid_that_transformers_transposes_are_refused(tmp_path):
    model = {
        "type": "vit.ViT",
        "num_classes": 0,
        "width": 48,
        "depth": 1,
        "mlp_dim": 80,
        "num_heads": 3,
        "patch_size": 8,
    }
    model |= {"relative_bias": "blocks", "qkv_bias": "qv", "posemb": "none"}
    images = Preprocessing((32, 48), None, "bicubic", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="4 x 6"):
        huggingface.write(tmp_path / "out", model, {}, images, None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_read_into_the_shapes_of_our_model(name):
    kind, fields = PUBLISHED[name]
    config = getattr(transformers, kind).config_class(num_hidden_layers=1, **fields)
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    arrays = {key: np.broadcast_to(np.float16(0), x.shape) for key, x in model.state_dict().items()}
    arrays, _ = wrappers.unwrap(arrays, name)
    stated = json.loads(config.to_json_string()) | {"model_type": config.model_type}
    found = huggingface.read(arrays, stated, name)
    built = factory.build(found.model, "model")
    images = jax.ShapeDtypeStruct((1, *found.preprocessing.size, 3), "float32")
    expected = jax.eval_shape(built.init, jax.random.key(0), images)["params"]
    assert {key: leaf.shape for key, leaf in trees.flatten(expected).items()} == {
        key: leaf.shape for key, leaf in found.params.items()
    }
