import jax
import jax.numpy as jnp
import pytest

from vit_jax.tasks.ijepa import FeaturePredictor
from vit_jax.tasks.mae import PixelDecoder
from vit_jax.tasks.vqkd import Rebuild

TOKENS = jnp.zeros((2, 3, 8), "bfloat16")
AT = jnp.zeros((2, 3), jnp.int32)
DECODERS = {
    "mae": (
        PixelDecoder(8, 2, 2, 5, (2, 2), 1, "gelu", "sincos2d", 1e-6, "bfloat16"),
        (TOKENS, AT[:, :1].repeat(4, 1)),
    ),
    "ijepa": (FeaturePredictor(8, 2, 2, 5, (2, 2), "bfloat16"), (TOKENS, AT, AT, jnp.ones((2, 6), bool))),
    "vqkd": (Rebuild(8, 2, 2, 5, "bfloat16"), (TOKENS.astype("float32"),)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_blocks_have_the_dtype_of_the_network_and_predictions_and_parameters_are_in_float32(name):
    decoder, given = DECODERS[name]

    def run(rng):
        params = decoder.init(rng, *given)["params"]
        return params, *decoder.apply({"params": params}, *given, mutable=["intermediates"])

    params, predicted, sown = jax.eval_shape(run, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert predicted.dtype == "float32"
    outs = jax.tree.leaves(sown["intermediates"]["encoder"])
    assert len(outs) == 2
    assert {x.dtype for x in outs} == {jnp.dtype("bfloat16")}
