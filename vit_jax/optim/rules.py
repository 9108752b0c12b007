"""Update rules: what becomes of the gradient before weight decay and learning rate. One is chosen by `optim.rule`."""

import jax.numpy as jnp
import optax

from vit_jax.types import DtypeName

KIND = optax.GradientTransformation


def adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, mu_dtype: DtypeName = "float32"
) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980); with `optim.weight_decay` it is AdamW (arXiv:1711.05101)."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(mu_dtype))


def sgd(
    momentum: float = 0.9, nesterov: bool = False, momentum_dtype: DtypeName = "bfloat16"
) -> optax.GradientTransformation:
    """SGD with momentum kept in bfloat16, as the original ViT fine-tunes (arXiv:2010.11929, appendix B.1.1)."""
    return optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=jnp.dtype(momentum_dtype))
