"""Pairs of towers from transformers, open_clip and big_vision give the embeddings of their own code, and go back there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.peers import torch, transformers
from vit_jax import trees
from vit_jax.cli.convert import write
from vit_jax.layers.patches import Patches
from vit_jax.types import UserError

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
TEXT |= {"max_position_embeddings": 6, "eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 1}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
}
VISION |= {"patch_size": 4}
OUT = {"projection_dim": 12}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
IDS = np.array([[38, 5, 7, 39, 1, 1], [38, 2, 3, 4, 9, 39], [38, 39, 1, 1, 1, 1]], np.int32)


def peer(kind):
    """A pair of transformers with weights away from their initial values."""
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=TEXT | OUT, vision_config=VISION | OUT, **OUT)
        made = transformers.CLIPModel(config)
    elif kind == "siglip":
        made = transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))
    else:
        vision = {key: value for key, value in VISION.items() if key != "image_size"} | {"num_patches": 16}
        made = transformers.Siglip2Model(transformers.Siglip2Config(text_config=TEXT, vision_config=vision))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def theirs(made, kind, loaded):
    """Image and text embeddings of unit length, and the scaled products."""
    scale = (np.asarray(getattr(loaded.task, key), np.float32) for key in ("mean", "std"))
    mean, std = scale
    pixels = torch.tensor(((PIXELS / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2))
    images = {"pixel_values": pixels}
    if kind == "siglip2":
        flat = pixels.permute(0, 2, 3, 1).reshape(3, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(3, 16, 48)
        images = {"pixel_values": flat, "pixel_attention_mask": torch.ones(3, 16, dtype=torch.long)}
        images["spatial_shapes"] = torch.tensor([[4, 4]] * 3)
    with torch.no_grad():
        out = made(input_ids=torch.tensor(IDS).long(), **images)
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def ours(loaded):
    found = loaded.predictor.outputs(loaded.weights, {"image": PIXELS, "text": IDS})
    params = loaded.weights["params"]
    image, text = found["image_embedding"], found["text_embedding"]
    return image, text, np.exp(params["log_scale"]) * image @ text.T + np.asarray(params.get("bias", 0.0))


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def case(request, tmp_path_factory):
    made, folder = peer(request.param), tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    return request.param, made, vit_jax.load(folder)


def test_embeddings_and_products_equal_transformers(case, agrees):
    kind, made, loaded = case
    for name, mine, other in zip(("image", "text", "product"), ours(loaded), theirs(made, kind, loaded), strict=True):
        agrees(f"{type(made).__name__}: {name}", "transformers", mine, other, 1e-4)


def test_exported_pairs_load_in_transformers(case, agrees, tmp_path):
    kind, made, loaded = case
    write(loaded, tmp_path / "out", "hf")
    again, info = type(made).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, x in made.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), again.state_dict()[name].numpy(), err_msg=name)
    for mine, other in zip(theirs(again.eval(), kind, loaded), theirs(made, kind, loaded), strict=True):
        agrees(f"{type(made).__name__}, exported", "transformers", mine, other, 1e-6)


def test_naflex_embeds_images_of_any_shape_as_transformers(agrees):
    made = peer("siglip2")
    rng, grids = np.random.default_rng(1), [(2, 7), (5, 3), (4, 4)]
    pixels = rng.normal(size=(3, 18, 48)).astype(np.float32)
    coords, valid = np.zeros((3, 18, 2), np.int32), np.zeros((3, 18), bool)
    for i, grid in enumerate(grids):
        count = grid[0] * grid[1]
        coords[i, :count], valid[i, :count] = np.indices(grid).reshape(2, -1).T, True
    with torch.no_grad():
        expected = made.vision_model(
            torch.tensor(pixels), torch.tensor(valid).long(), torch.tensor(grids)
        ).pooler_output.numpy()
    from vit_jax.inference import _published
    from vit_jax.pretrained import huggingface_towers

    arrays = {name: x.numpy() for name, x in made.state_dict().items()}
    loaded = _published(huggingface_towers.read(arrays, json.loads(made.config.to_json_string()), "peer"), {})
    variables = {"params": loaded.weights["params"]["backbone"]}
    found = jax.jit(loaded.model.apply)(
        variables, Patches(jnp.asarray(pixels), jnp.asarray(coords), jnp.asarray(valid))
    )
    agrees("Siglip2Model: images of any shape", "transformers", found, expected, 1e-4)


def test_a_pair_goes_to_a_workdir_and_back(case, tmp_path):
    _, _, loaded = case
    write(loaded, tmp_path / "run", "workdir")
    for mine, other in zip(ours(vit_jax.load(tmp_path / "run")), ours(loaded), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_big_visions_two_towers_go_out_and_come_back(tmp_path):
    """In the names of two_towers.py; the blocks are those of its vit.py, which test_google compares."""
    folder = tmp_path / "hf"
    peer("siglip").save_pretrained(folder)
    loaded = vit_jax.load(folder)
    write(loaded, tmp_path / "two.npz", "npz")
    with np.load(tmp_path / "two.npz") as file:
        names = set(file.files)
        assert file["params/t"].shape == file["params/b"].shape == (1,)
    assert {"params/txt/Embed_0/embedding", "params/txt/pos_embedding", "params/txt/head/kernel"} <= names
    assert {"params/img/MAPHead_0/probe", "params/txt/Encoder_0/encoderblock_1/MlpBlock_0/Dense_0/kernel"} <= names
    again = vit_jax.load(tmp_path / "two.npz")
    for name, x in trees.flatten(loaded.weights["params"]).items():
        np.testing.assert_array_equal(x, trees.flatten(again.weights["params"])[name], err_msg=name)


def test_open_clip_goes_out_and_comes_back(tmp_path, agrees):
    folder = tmp_path / "hf"
    made = peer("clip")
    made.save_pretrained(folder)
    loaded = vit_jax.load(folder)
    write(loaded, tmp_path / "open", "open_clip")
    arrays = safetensors.numpy.load_file(tmp_path / "open" / "open_clip_model.safetensors")
    # As openai/CLIP's transformers file says which of its arrays are which (convert_clip_original_pytorch_to_hf.py).
    np.testing.assert_array_equal(arrays["visual.proj"].T, made.visual_projection.weight.detach())
    query = made.text_model.encoder.layers[1].self_attn.q_proj.weight.detach()
    np.testing.assert_array_equal(arrays["transformer.resblocks.1.attn.in_proj_weight"][:16], query)
    again = vit_jax.load(tmp_path / "open")
    for mine, other in zip(ours(again), ours(loaded), strict=True):
        agrees("open_clip, exported and read", "the pair before", mine, other, 1e-6)


def test_a_pair_that_no_library_has_is_refused_by_name(case, tmp_path):
    kind, _, loaded = case
    if kind != "clip":
        pytest.skip("one kind is enough")
    with pytest.raises(UserError, match=r"cannot represent model\.embed_bias"):
        write(loaded, tmp_path / "x.npz", "npz")


def test_published_pairs_are_fine_tuned_with_their_text_tower(case, tmp_path):
    """What a run takes besides the image tower has the published values."""
    from vit_jax.train.begin_from import beside_backbone

    kind, _, loaded = case
    like = jax.eval_shape(lambda: loaded.weights["params"])
    taken = beside_backbone(loaded, loaded.task, trees.flatten(like))
    assert {"text/embed/embedding", "log_scale"} <= set(taken)
    assert not any(name.startswith("backbone/") for name in taken)
    assert kind == "clip" or "bias" in taken
