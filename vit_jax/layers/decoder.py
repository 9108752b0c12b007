"""A text decoder that attends to the tokens of images (CapPa, arXiv:2306.07915, section 3)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from vit_jax.layers.attention import Attention
from vit_jax.layers.geometry import Geometry, causal
from vit_jax.layers.mlp import Mlp
from vit_jax.types import Tokens


class DecoderBlock(nn.Module):
    """Self-attention, attention to the image's tokens, and an MLP, each after a LayerNorm; without biases."""

    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    norm_eps: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, images: Float[Array, "b m e"], geometry: Geometry, *, train: bool) -> Tokens:
        """Map text tokens [b, n, d] to [b, n, d]; images [b, m, d] are the encoded patches."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(self.norm_eps, use_bias=False, **dtypes, name=name)

        def attention(name: str) -> Attention:
            return Attention(self.num_heads, self.dropout, qkv_bias=False, out_bias=False, **dtypes, name=name)

        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = norm("norm1")(x)
        x = x + drop(attention("attn")(y, y, None, geometry, deterministic=not train))
        x = x + drop(attention("cross")(norm("norm2")(x), images, deterministic=not train))
        return x + drop(Mlp(self.mlp_dim, bias=False, **dtypes, name="mlp")(norm("norm3")(x), deterministic=not train))


class Decoder(nn.Module):
    """Predict each token of a caption from the image and the preceding tokens or, if `parallel`, from the image only.

    vocab_size: the number of ids, without the mask.
    """

    vocab_size: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: Int[Array, "b n"],
        images: Float[Array, "b m e"],
        parallel: Bool[Array, "b"],
        *,
        train: bool = False,
    ) -> Float[Array, "b n v"]:
        """Map the ids of a caption and the encoded patches [b, m, e] to logits [b, n, vocab_size] of its tokens."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        before = jnp.pad(text, ((0, 0), (1, 0)))[:, :-1]
        seen = jnp.where(parallel[:, None], self.vocab_size, before)
        x = nn.Embed(
            self.vocab_size + 1, self.width, embedding_init=nn.initializers.normal(1.0), **dtypes, name="embed"
        )(seen)
        shape = (1, text.shape[1], self.width)
        x = x + self.param("posemb", nn.initializers.normal(self.width**-0.5), shape, self.param_dtype).astype(
            self.dtype
        )
        if images.shape[-1] != self.width:
            images = nn.Dense(self.width, use_bias=False, **dtypes, name="images")(images)
        later = causal(self.num_heads, text.shape[1]).bias
        assert later is not None
        geometry = Geometry(bias=jnp.where(parallel[:, None, None, None], 0.0, later[None]))
        for i in range(self.depth):
            block = DecoderBlock(self.mlp_dim, self.num_heads, self.dropout, **dtypes, name=f"block_{i}")
            x = block(x, images, geometry, train=train)
        x = nn.LayerNorm(1e-6, **dtypes, name="norm")(x)
        return nn.Dense(self.vocab_size, kernel_init=nn.initializers.zeros, **dtypes, name="logits")(x)
