"""MAE's decoder is read from transformers and written for it: the same loss from the same weights and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peers import torch, transformers
from vit_jax import inference
from vit_jax.__main__ import main

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16,
    "patch_size": 4, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64, "mask_ratio": 0.5, "norm_pix_loss": True, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES, NOISE = RNG.integers(0, 256, (3, 16, 16, 3), np.uint8), RNG.random((3, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without a weight at its default, but for the decoder's positions, which transformers' function draws."""
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES))
    model.decoder.initialize_weights(16)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "decoder_pos_embed" not in name:
                param += 0.2 * torch.randn_like(param)
    place = tmp_path_factory.mktemp("mae")
    model.save_pretrained(place)
    return place


def their_loss(folder, scale):
    model = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    mean, std = (np.asarray(x, np.float32) for x in scale)
    pixels = ((IMAGES / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return model(torch.tensor(pixels), noise=torch.tensor(NOISE)).loss.item()


def our_loss(loaded):
    batch = {"image": jnp.asarray(IMAGES), "order": jnp.asarray(NOISE.argsort(axis=1))}
    return float(jax.jit(loaded.task.loss)(loaded.weights["params"], {}, batch, jax.random.key(0))[0])


def test_the_loss_is_that_of_transformers_both_ways(folder, tmp_path, agrees):
    loaded = inference.load(folder)
    expected = their_loss(folder, loaded.scale)
    agrees(
        "MAE with its decoder, read: loss", f"transformers {transformers.__version__}", our_loss(loaded), expected, 1e-5
    )
    assert main(["convert", f"--model={folder}", f"--out={tmp_path / 'workdir'}", "--to=workdir"]) == 0
    assert main(["convert", f"--model={folder}", f"--out={tmp_path / 'hf'}", "--to=hf"]) == 0
    again = their_loss(tmp_path / "hf", loaded.scale)
    agrees("MAE with its decoder, written: loss", f"transformers {transformers.__version__}", again, expected, 1e-6)
    assert our_loss(inference.load(tmp_path / "hf")) == our_loss(loaded)
