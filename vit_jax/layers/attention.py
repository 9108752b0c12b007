"""Multi-head attention (arXiv:1706.03762, section 3.2.2)."""

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.layers import attend
from vit_jax.layers.initial import INITIAL, WeightInit
from vit_jax.layers.product import dot_general
from vit_jax.types import Mask, Tokens, UserError


class Attention(nn.Module):
    """Multi-head dot-product attention of `queries` over `tokens`; self-attention when both are the same.

    qk_norm: a LayerNorm on each head's queries and keys (arXiv:2302.05442, section 2.1). qkv_bias=False leaves out the
    biases of queries, keys and values. form: see attend.choose; only the plain form has dropout and masks. Sows the weights
    [b, heads, queries, tokens] into the collection "attention" when that is mutable, after adding what the collection
    "perturbations" has for them, whose gradient is thus that of the weights.
    """

    num_heads: int
    dropout: float = 0.0
    qk_norm: bool = False
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    form: attend.Form = "auto"
    weight_init: WeightInit = "xavier"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, queries: Float[Array, "b q d"], tokens: Tokens, mask: Mask = None, *, deterministic: bool = True
    ) -> Float[Array, "b q d"]:
        """Attend to the tokens where `mask` [b, n] is True; the softmax is in float32 whatever the dtype."""
        width = tokens.shape[-1]
        if width % self.num_heads:
            raise UserError(f"A width of {width} cannot be split into num_heads={self.num_heads} attention heads.")
        head = (self.num_heads, width // self.num_heads)

        def project(name: str, x: Array) -> Float[Array, "b n k h"]:
            dense = nn.DenseGeneral(
                head,
                use_bias=self.qkv_bias,
                kernel_init=INITIAL[self.weight_init].kernel,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                dot_general=dot_general,
                name=name,
            )
            return dense(x)

        q, k, v = project("query", queries), project("key", tokens), project("value", tokens)
        if self.qk_norm:
            q, k = (
                nn.LayerNorm(self.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)
                for name, x in (("query_norm", q), ("key_norm", k))
            )
        q, k, v = (checkpoint_name(x, "qkv") for x in (q, k, v))  # for Encoder.remat
        drops = self.dropout > 0 and not deterministic
        # init makes every collection mutable, but only the parameters are wanted.
        shows = self.is_mutable_collection("attention") and not self.is_initializing()
        form = attend.choose(
            self.form, tokens.shape[1], whole=queries is tokens and mask is None and not (drops or shows)
        )
        if form != "plain" and drops:
            raise UserError(
                f"model.attention={form!r} has no dropout; found attn_dropout={self.dropout}: take 'plain'."
            )
        if form != "plain" and mask is not None:
            raise UserError(f"model.attention={form!r} takes no mask of tokens; take 'plain' or 'auto'.")
        if drops or shows or mask is not None:
            weights = attend.weights_of(q, k, mask)
            if mask is not None:  # so that a NaN in a masked token stays there
                v = jnp.where(mask[:, :, None, None], v, jnp.zeros((), v.dtype))
            if shows:
                weights = self.perturb("weights", weights)
                self.sow("attention", "weights", weights, reduce_fn=lambda _, w: w, init_fn=lambda: None)
            mixed = attend.weighted_values(nn.Dropout(self.dropout)(weights, deterministic=deterministic), v)
        else:
            mixed = attend.FORMS[form if queries is tokens else "plain"](q, k, v)
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=INITIAL[self.weight_init].kernel,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            dot_general=dot_general,
            name="out",
        )(mixed)
