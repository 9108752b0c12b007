import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from tests import typecheck


def made(width):
    """A function inside another, made anew at each call, with an argument of each call as its default."""

    @jaxtyped(typechecker=typecheck.once)
    def scaled(x: Float[Array, "n d"], by: int = width) -> Float[Array, " n"]:
        return by * x[:, 0]

    return scaled


def test_functions_of_one_definition_share_their_check_and_still_refuse_other_shapes():
    count = len(typecheck._COMPILED)
    assert made(3)(jnp.ones((2, 3))).tolist() == [3.0, 3.0]
    first = len(typecheck._COMPILED)
    assert made(3)(jnp.ones((2, 3))).tolist() == [3.0, 3.0]
    assert len(typecheck._COMPILED) == first == count + 2  # one of the parameters, one of the result as well
    with pytest.raises(TypeCheckError, match="scaled"):
        made(3)(jnp.ones(3))
    with pytest.raises(TypeCheckError, match="by"):
        made(3)(jnp.ones((2, 3)), by="2")
