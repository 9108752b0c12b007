"""The losses of masked image modelling beside those of transformers, from the same weights and the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from tests.peers import torch, transformers
from vit_jax import trees
from vit_jax.layers.posemb import sincos2d
from vit_jax.models.vit import ViT
from vit_jax.tasks.beit import Beit
from vit_jax.tasks.mae import Mae
from vit_jax.tasks.simmim import Simmim
from vit_jax.tasks.task import normalize

RNG, KEY = np.random.default_rng(0), jax.random.key(0)
IMAGES = RNG.integers(0, 256, (4, 16, 16, 3), np.uint8)
PIXELS = torch.tensor(np.asarray(normalize(jnp.asarray(IMAGES), 0.5, 0.5), np.float64).transpose(0, 3, 1, 2))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16,
         "patch_size": 4, "layer_norm_eps": 1e-6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
TRANSFORMERS = f"transformers {transformers.__version__}"


def vit(**fields):
    return ViT(0, 32, 2, 64, 2, patch_size=4, mlp="gelu", **fields)


def peer(cls, config):
    """A model of transformers in float64, without a weight that is zero or one."""
    model = cls(config).double().eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for param in model.parameters():
            param += torch.tensor(0.2 * rng.normal(size=param.shape))
    return model, {name: leaf.detach().numpy() for name, leaf in model.state_dict().items()}


def block(theirs, prefix, heads):
    """The parameters of one of our blocks."""
    found = {}
    for ours, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        kernel = theirs[f"{prefix}.attention.{name}.weight"]
        bias = theirs.get(f"{prefix}.attention.{name}.bias", np.zeros(len(kernel)))
        found[f"attn/{ours}/kernel"] = rearrange(kernel, "(k h) d -> d k h", k=heads)
        found[f"attn/{ours}/bias"] = rearrange(bias, "(k h) -> k h", k=heads)
    found["attn/out/kernel"] = rearrange(theirs[f"{prefix}.attention.o_proj.weight"], "d (k h) -> k h d", k=heads)
    found["attn/out/bias"] = theirs[f"{prefix}.attention.o_proj.bias"]
    for ours, name in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
        found |= {f"{ours}/scale": theirs[f"{prefix}.{name}.weight"], f"{ours}/bias": theirs[f"{prefix}.{name}.bias"]}
    for ours, name in (("mlp/up", "mlp.fc1"), ("mlp/down", "mlp.fc2")):
        found |= linear(theirs, f"{prefix}.{name}", ours)
    scales = {f"layer_scale{i}/scale": theirs.get(f"{prefix}.lambda_{i}") for i in (1, 2)}
    return found | {name: leaf for name, leaf in scales.items() if leaf is not None}


def linear(theirs, name, ours):
    return {f"{ours}/kernel": theirs[f"{name}.weight"].T, f"{ours}/bias": theirs[f"{name}.bias"]}


def backbone(theirs, root, norm):
    """The parameters of our ViT."""
    place = f"{root}.embeddings"
    found = {
        "cls": theirs[f"{place}.cls_token"],
        "posemb/table": theirs[f"{place}.position_embeddings"],
        "embed/kernel": theirs[f"{place}.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        "embed/bias": theirs[f"{place}.patch_embeddings.projection.bias"],
        "encoder/norm/scale": theirs[f"{norm}.weight"],
        "encoder/norm/bias": theirs[f"{norm}.bias"],
    }
    if f"{place}.mask_token" in theirs:
        found["mask_token"] = theirs[f"{place}.mask_token"]
    for i in range(2):
        layer = block(theirs, f"{root}.layers.{i}", 2)
        found |= {f"encoder/block_{i}/{name}": leaf for name, leaf in layer.items()}
    return found


def params_of(**parts):
    """A task's parameters from flat names, of the same shapes as its own."""
    named = {
        f"{part}/{name}": jnp.asarray(leaf, jnp.float32) for part, of in parts.items() for name, leaf in of.items()
    }
    return trees.nest(named)


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_mae_has_the_loss_of_transformers(agrees, norm_pixels):
    sizes = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(
        **SIZES, **sizes, decoder_intermediate_size=64, mask_ratio=0.75, norm_pix_loss=norm_pixels
    )
    model, theirs = peer(transformers.ViTMAEForPreTraining, config)
    task = Mae(vit(), decoder_width=16, decoder_depth=2, decoder_heads=2, norm_pixels=norm_pixels)
    # Our decoder has fixed positions: the peer takes them.
    positions = np.concatenate([np.zeros((1, 16)), sincos2d(4, 4, 16)])[None]
    model.decoder.decoder_pos_embed.data = torch.tensor(positions)
    decoder = linear(theirs, "decoder.decoder_embed", "embed") | linear(theirs, "decoder.decoder_pred", "pixels")
    decoder |= {"mask_token": theirs["decoder.mask_token"]}
    for key, name in (("scale", "weight"), ("bias", "bias")):
        decoder[f"encoder/norm/{key}"] = theirs[f"decoder.decoder_norm.{name}"]
    for i in range(2):
        layer = block(theirs, f"decoder.decoder_layers.{i}", 2)
        decoder |= {f"encoder/block_{i}/{name}": leaf for name, leaf in layer.items()}
    params = params_of(backbone=backbone(theirs, "vit", "vit.layernorm"), decoder=decoder)

    noise = RNG.random((4, 16))
    with torch.no_grad():
        expected = model(PIXELS, noise=torch.tensor(noise)).loss
    batch = {"image": jnp.asarray(IMAGES), "order": jnp.asarray(noise.argsort(axis=1))}
    loss, _ = jax.jit(task.loss)(params, {}, batch, KEY)
    agrees(f"MAE: loss, norm_pixels={norm_pixels}", f"{TRANSFORMERS}, float64", loss, expected.item(), 1e-5)


def masks_of(count):
    """As many masked patches in each image."""
    return np.argsort(np.argsort(RNG.random((4, 16)), axis=1), axis=1) < count


def test_simmim_has_the_loss_of_transformers(agrees):
    model, theirs = peer(transformers.ViTForMaskedImageModeling, transformers.ViTConfig(**SIZES, encoder_stride=4))
    kernel = rearrange(theirs["decoder.0.weight"], "(c p q) d 1 1 -> d (p q c)", p=4, q=4)
    decoder = {"kernel": kernel, "bias": rearrange(theirs["decoder.0.bias"], "(c p q) -> (p q c)", p=4, q=4)}
    params = params_of(backbone=backbone(theirs, "vit", "vit.layernorm"), decoder=decoder)
    masked = masks_of(9)
    with torch.no_grad():
        expected = model(PIXELS, bool_masked_pos=torch.tensor(masked)).loss
    task = Simmim(vit(mask_token=True), mean=0.5, std=0.5, unit=1)
    loss, _ = jax.jit(task.loss)(params, {}, {"image": jnp.asarray(IMAGES), "masked": jnp.asarray(masked)}, KEY)
    agrees("SimMIM: loss", f"{TRANSFORMERS}, float64", loss, expected.item(), 1e-5)


def test_beit_has_the_loss_of_transformers(agrees):
    config = transformers.BeitConfig(
        **SIZES, vocab_size=7, use_mask_token=True, use_absolute_position_embeddings=True, drop_path_rate=0.0
    )
    model, theirs = peer(transformers.BeitForMaskedImageModeling, config)
    decoder = {"kernel": theirs["lm_head.weight"].T, "bias": theirs["lm_head.bias"]}
    params = params_of(backbone=backbone(theirs, "beit", "layernorm"), decoder=decoder)
    masked, codes = masks_of(6), RNG.integers(0, 7, (4, 16))
    with torch.no_grad():
        labels = torch.tensor(codes[masked])
        expected = model(PIXELS, bool_masked_pos=torch.tensor(masked), labels=labels)
    task = Beit(vit(mask_token=True, layer_scale=0.1), codes=7, smallest_block=2, mean=0.5, std=0.5)
    batch = {"image": jnp.asarray(IMAGES), "masked": jnp.asarray(masked), "codes": jnp.asarray(codes)}
    loss, (metrics, _) = jax.jit(task.loss)(params, {}, batch, KEY)
    agrees("BEiT: loss", f"{TRANSFORMERS}, float64", loss, expected.loss.item(), 1e-5)
    hits = expected.logits.argmax(dim=2).numpy()[masked] == codes[masked]
    assert float(metrics["accuracy"]) == pytest.approx(hits.mean())
