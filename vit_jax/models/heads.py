"""Heads: what maps the pooled features to logits. One is chosen by `model.head`."""

from typing import Any

from flax import linen as nn

from vit_jax.types import DtypeName, UserError

KIND = nn.Module


def linear(std: float = 0.0, bias: float = 0.0) -> nn.Module:
    """Return a linear layer whose kernel begins normal with this standard deviation, or with zeros, and a constant bias.

    DeiT begins with std=0.02; its trunc_normal cuts at 2, which is 100 deviations.
    """
    if std < 0:
        raise UserError(f"model.head.std={std}; expected a number of at least 0.")
    kernel = nn.initializers.normal(std) if std else nn.initializers.zeros
    return nn.Dense(0, kernel_init=kernel, bias_init=nn.initializers.constant(bias))


def fitted(head: nn.Module, num_classes: int, dtype: DtypeName, param_dtype: DtypeName) -> Any:
    """Return a head for this many classes, in these dtypes, where it has fields for them."""
    given: dict[str, Any] = {
        "features": num_classes,
        "num_classes": num_classes,
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
    return head.clone(**{key: value for key, value in given.items() if hasattr(head, key)})
