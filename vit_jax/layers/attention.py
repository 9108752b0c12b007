"""Multi-head attention (arXiv:1706.03762, section 3.2.2)."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax.layers import attend
from vit_jax.layers.dense import Dense
from vit_jax.layers.geometry import Geometry, relative_bias
from vit_jax.layers.initial import INITIAL, WeightInit
from vit_jax.layers.rope import Rope, rotate
from vit_jax.types import Mask, Tokens, UserError

QkvBias = bool | Literal["qv"]


class Attention(nn.Module):
    """Multi-head dot-product attention of `queries` over `tokens`; self-attention when both are the same.

    qk_norm: a LayerNorm on each head's queries and keys (arXiv:2302.05442, section 2.1). norm: a LayerNorm on the
    weighted values of all heads together, before the last projection (arXiv:2210.06423, section 3). qkv_bias=False
    omits the biases of queries, keys and values, "qv" the bias of the keys; out_bias=False omits the bias of the last
    projection. rope: rotates queries and keys. If the geometry has offsets, each head learns a bias for each offset
    (`relative_bias`). form: see attend.choose; only the plain form has dropout. If the collection "attention" is
    mutable, sows the weights [b, heads, queries, tokens] into it, after adding the collection "perturbations", whose
    gradient is thus the gradient of the weights.
    """

    num_heads: int
    dropout: float = 0.0
    qk_norm: bool = False
    qkv_bias: QkvBias = True
    norm_eps: float = 1e-6
    form: attend.Form = "auto"
    norm: bool = False
    rope: Rope | None = None
    weight_init: WeightInit = "xavier"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    out_bias: bool = True

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "b q d"],
        tokens: Tokens,
        mask: Mask = None,
        geometry: Geometry | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b q d"]:
        """Attend to the tokens for which `mask` [b, n] is True; the softmax is in float32 for every dtype."""
        width = tokens.shape[-1]
        if width % self.num_heads:
            raise UserError(f"A width of {width} cannot be split into num_heads={self.num_heads} attention heads.")
        head = (self.num_heads, width // self.num_heads)
        dense: dict[str, Any] = {
            "kernel_init": INITIAL[self.weight_init].kernel,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }

        def project(name: str, x: Array) -> Float[Array, "b n k h"]:
            has_bias = name != "key" if self.qkv_bias == "qv" else self.qkv_bias
            return Dense(head, use_bias=has_bias, **dense, name=name)(x)

        q, k, v = project("query", queries), project("key", tokens), project("value", tokens)
        if self.qk_norm:
            q, k = (
                nn.LayerNorm(self.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)
                for name, x in (("query_norm", q), ("key_norm", k))
            )
        q, k = self._rotated(q, k, geometry)
        bias = self._bias(geometry)
        q, k, v = (checkpoint_name(x, "qkv") for x in (q, k, v))  # for Encoder.remat
        drops = self.dropout > 0 and not deterministic
        # init makes every collection mutable, but only the parameters are wanted.
        shows = self.is_mutable_collection("attention") and not self.is_initializing()
        whole = queries is tokens and not (drops or shows)
        form = attend.choose(self.form, tokens.shape[1], whole, bias)
        if form != "plain" and drops:
            raise UserError(
                f"model.attention={form!r} has no dropout; found attn_dropout={self.dropout}: take 'plain'."
            )
        if drops or shows:
            weights = attend.weights_of(q, k, mask, bias)
            if shows:
                weights = self.perturb("weights", weights)
                self.sow("attention", "weights", weights, reduce_fn=lambda _, w: w, init_fn=lambda: None)
            weights = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
            mixed = attend.weighted_values(weights, v, mask)
        else:
            mixed = attend.FORMS[form if queries is tokens else "plain"](q, k, v, mask, bias)
        if self.norm:
            norm = nn.LayerNorm(self.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype, name="norm")
            mixed = norm(mixed.reshape(*mixed.shape[:2], width)).reshape(mixed.shape)
        return Dense(width, inputs=2, use_bias=self.out_bias, **dense, name="out")(mixed)

    def _rotated(
        self, queries: Float[Array, "b q k h"], keys: Float[Array, "b n k h"], geometry: Geometry | None
    ) -> tuple[Float[Array, "b q k h"], Float[Array, "b n k h"]]:
        """Rotate queries and keys by the angles of their positions, if there is a rotary embedding."""
        if self.rope is None or geometry is None or geometry.coords is None:
            return queries, keys
        angles = self.rope.copy(parent=self, name="rope")(geometry.coords, *queries.shape[2:])
        return rotate(queries, angles, self.rope.pairs), rotate(keys, angles, self.rope.pairs)

    def _bias(self, geometry: Geometry | None) -> Float[Array, "... k n n"] | None:
        """Return the bias for the scores, from a table of this layer or one that all layers share."""
        if geometry is None or geometry.offsets is None:
            return None if geometry is None else geometry.bias
        shape = (geometry.distances, self.num_heads)
        table = self.param("relative_bias", nn.initializers.zeros, shape, self.param_dtype)
        return relative_bias(table, geometry.offsets)
