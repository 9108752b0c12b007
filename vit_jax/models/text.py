"""Text towers: CLIP's causal transformer (arXiv:2103.00020, section 2.4) and SigLIP's bidirectional one (arXiv:2303.15343)."""

from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.layers.block import Block
from vit_jax.layers.encoder import Encoder, Remat
from vit_jax.layers.geometry import causal
from vit_jax.layers.mlp import MlpKind
from vit_jax.layers.pooling import AttentionPool
from vit_jax.types import Count, DtypeName, Tokens, Units, UserError


class TextTransformer(nn.Module):
    """Token and position embeddings, the encoder of the image side, pooling, and a linear map to `out_dim` numbers.

    causal: each token attends only to itself and the tokens before it. pool: "last" reads the last token, "eos" the
    first token with the id `eos`, and "map" uses attention pooling. out_dim=None returns the pooled vector. For all
    other fields see vit.ViT.
    """

    vocab_size: Units
    length: Units
    width: Units
    depth: Count
    mlp_dim: Units
    num_heads: Count
    out_dim: Units | None = None
    out_bias: bool = True
    causal: bool = False
    pool: Literal["last", "eos", "map"] = "last"
    eos: int | None = None
    mlp: MlpKind = "gelu_tanh"
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    def __post_init__(self):
        super().__post_init__()
        if self.pool == "eos" and (self.eos is None or not 0 <= self.eos < self.vocab_size):
            raise UserError(
                f"task.text.pool='eos' reads the token whose id is task.text.eos; found eos={self.eos}, expected an id below "
                f"vocab_size={self.vocab_size}."
            )

    @nn.compact
    def __call__(self, text: Int[Array, "b n"], *, train: bool = False) -> Float[Array, "b d"]:
        """Map token ids [b, length] to vectors [b, out_dim]."""
        if text.shape[1] != self.length:
            raise UserError(f"task.text.length={self.length}; found texts of {text.shape[1]} tokens: make them equal.")
        encoded = self.encode(text, train=train)
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        if self.pool == "map":
            gelu = "gelu_tanh" if self.mlp == "swiglu" else self.mlp
            pooled = AttentionPool(self.mlp_dim, self.num_heads, gelu, self.norm_eps, **dtypes, name="pool")(encoded)
        elif self.pool == "eos":
            at = jnp.argmax(text == self.eos, axis=1)
            pooled = jnp.take_along_axis(encoded, at[:, None, None], axis=1)[:, 0]
        else:
            pooled = encoded[:, -1]
        if self.out_dim is None:
            return pooled
        init = nn.initializers.normal(self.width**-0.5)
        return nn.Dense(self.out_dim, use_bias=self.out_bias, kernel_init=init, **dtypes, name="head")(pooled)

    @nn.compact
    def encode(self, text: Int[Array, "b n"], *, train: bool = False) -> Tokens:
        """Map token ids [b, length] to encoded tokens [b, length, d]."""
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(0.02), **dtypes, name="embed"
        )
        shape = (1, self.length, self.width)
        table = self.param("posemb", nn.initializers.normal(0.01), shape, dtypes["param_dtype"])
        x = embed(text) + table.astype(dtypes["dtype"])
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        block = partial(
            Block, self.mlp_dim, self.num_heads, self.dropout, self.attn_dropout, mlp=self.mlp, norm_eps=self.norm_eps, **dtypes
        )  # fmt: skip
        encoder = Encoder(
            block, self.depth, self.drop_path, norm_eps=self.norm_eps, remat=self.remat, scan=self.scan, **dtypes, name="encoder"
        )  # fmt: skip
        return encoder(x, None, causal(self.num_heads, self.length) if self.causal else None, train=train)
