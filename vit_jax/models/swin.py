"""Swin Transformer: attention in shifted windows on coarser and coarser maps (arXiv:2103.14030, arXiv:2111.09883)."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax.layers.drop import drop_path_rates
from vit_jax.layers.encoder import POLICIES, Remat
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.windows import Coarser, Map, Merge, SwinBlock, Version
from vit_jax.models import heads
from vit_jax.sharding import batch_sharded
from vit_jax.types import DtypeName, Images, Logits, UserError


class Swin(nn.Module):
    """Swin Transformer: patches, stages of blocks in plain and shifted windows with merges between them, global average, head.

    depths, num_heads: of each stage, which has twice the width of the previous stage. window: the side of the windows
    in tokens, at most the shorter side of a map. trained_windows: of each stage, the window size in which version 2
    measures offsets. Maps of any size are padded with zeros, which are attended to, as in the original and
    transformers. mask_token: learn a token that replaces masked patches (SimMIM). num_classes=0 returns the pooled
    features. remat: see Encoder. scan: compile each pair of blocks of a stage once. All parameters have param_dtype,
    and all activations dtype, except statistics and softmax, which are float32.
    """

    num_classes: int
    width: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window: int = 7
    version: Version = 1
    patch_size: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    trained_windows: tuple[int, ...] | None = None
    mask_token: bool = False
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    head: nn.Module | None = None
    head_bias: float = 0.0
    remat: Remat = "none"
    scan: bool = False
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    num_prefix = 0

    def __post_init__(self):
        if self.head is not None:
            self.head = heads.fitted(self.head, self.num_classes, self.dtype, self.param_dtype)
        super().__post_init__()
        if len(self.depths) != len(self.num_heads) or not self.depths or min(*self.depths, *self.num_heads) < 1:
            raise UserError(
                f"model.depths={self.depths} and num_heads={self.num_heads}; expected a number of each stage."
            )
        for stage, k in enumerate(self.num_heads):
            if (self.width * 2**stage) % k:
                raise UserError(
                    f"A width of {self.width * 2**stage} cannot be split into model.num_heads[{stage}]={k} heads."
                )
        if self.window < 2 or self.patch_size < 1:
            raise UserError(f"model.window={self.window}, patch_size={self.patch_size}; expected at least 2 and 1.")
        if self.trained_windows is not None and len(self.trained_windows) != len(self.depths):
            raise UserError(
                f"model.trained_windows={self.trained_windows}; expected one for each of {len(self.depths)} stages."
            )
        for name in ("dropout", "attn_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}; expected a rate in [0, 1).")

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return sum(self.depths)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the last stage's map for an image of (height, width) pixels."""
        rows, columns = (-(-side // self.patch_size) for side in image_size)
        for _ in self.depths[1:]:
            rows, columns = -(-rows // 2), -(-columns // 2)
        return rows, columns

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 for the embedding, 1 + i for block i and its merge, else depth + 1."""
        found = re.search(r"(?:^|/)stage_(\d+)/(?:block_(\d+)|merge)/", name)
        if found is None:
            return 0 if re.match(r"(embed|embed_norm|mask_token)(/|$)", name) else self.depth + 1
        stage = int(found[1])
        return sum(self.depths[:stage]) + (self.depths[stage] if found[2] is None else int(found[2]) + 1)

    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Map normalised images [b, h, w, c] to logits [b, num_classes]; sows `encoded`, `pooled` and `features`."""
        return self.apply_head(self.features(images, train=train)["pooled"])

    @nn.compact
    def features(
        self, images: Images, *, masked: Bool[Array, "b patches"] | None = None, train: bool = False
    ) -> dict[str, Any]:
        """Return `tokens` [b, n, d] of the last map, its `grid`, `pooled`, and tokens of all `stages` with `grids`.

        masked: cells of the last map; the mask token replaces their patches.
        """
        x = self._embed(images, masked)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        rates, stages, grids = drop_path_rates(self.drop_path, self.depth, "linear"), [], []
        for stage, depth in enumerate(self.depths):
            first = sum(self.depths[:stage])
            options = {**self._dtypes, "version": self.version, "norm_eps": self.norm_eps}
            block = functools.partial(
                SwinBlock, self.num_heads[stage], self.window, mlp_ratio=self.mlp_ratio, qkv_bias=self.qkv_bias,
                dropout=self.dropout, attn_dropout=self.attn_dropout,
                trained_window=(self.trained_windows or (0,) * len(self.depths))[stage], **options,
            )  # fmt: skip
            more = stage + 1 < len(self.depths)
            merge = functools.partial(Merge, **options) if more else None
            fields = (block, depth, tuple(rates[first : first + depth]), merge, self.remat, self.scan)
            after, x = Stage(*fields, name=f"stage_{stage}")(x, train=train)
            stages.append(rearrange(after, "b h w c -> b (h w) c"))
            grids.append(after.shape[1:3])
        encoded = nn.LayerNorm(self.norm_eps, **self._dtypes, name="norm")(stages[-1])
        self._sow("encoded", encoded)
        pooled = encoded.mean(axis=1)
        self._sow("pooled", pooled)
        return {"tokens": encoded, "grid": grids[-1], "prefix": 0, "pooled": pooled, "stages": stages, "grids": grids}

    @nn.compact
    def apply_head(self, pooled: Float[Array, "b d"]) -> Logits:
        """Map pooled features to logits [b, num_classes], or return them without classes."""
        self._sow("features", pooled)
        if not self.num_classes:
            return pooled
        if self.head is not None:
            return self.head(pooled)
        zeros, bias = nn.initializers.zeros, nn.initializers.constant(self.head_bias)
        return nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias, **self._dtypes, name="head")(pooled)

    @property
    def _dtypes(self) -> dict[str, Any]:
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

    def _embed(self, images: Images, masked: Bool[Array, "b patches"] | None) -> Coarser:
        patch = (self.patch_size, self.patch_size)
        pads = [(0, -side % self.patch_size) for side in images.shape[1:3]]
        images = jnp.pad(images, ((0, 0), *pads, (0, 0)))
        x = PatchEmbed(self.width, patch, patch, weight_init="trunc_normal", **self._dtypes, name="embed")(images)
        x = nn.LayerNorm(self.norm_eps, **self._dtypes, name="embed_norm")(x)
        if not self.mask_token:
            if masked is not None:
                raise UserError("Patches can be masked only in a model with a mask token; give model.mask_token=True.")
            return x
        token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, 1, self.width), self._dtypes["param_dtype"]
        )
        if masked is None:
            return x
        side = 2 ** (len(self.depths) - 1)
        rows = -(-x.shape[1] // side)
        cells = repeat(masked, "b (i j) -> b (i p) (j q)", i=rows, p=side, q=side)[:, : x.shape[1], : x.shape[2]]
        return jnp.where(cells[..., None], token.astype(x.dtype), x)

    def _sow(self, name: str, x: Array) -> None:
        self.sow("intermediates", name, x, reduce_fn=lambda _, last: last, init_fn=lambda: None)


class Stage(nn.Module):
    """Alternate blocks in plain and shifted windows, then a merge; returns the maps before and after the merge."""

    block: Callable[..., nn.Module]
    depth: int
    rates: tuple[float, ...]
    merge: Callable[..., nn.Module] | None
    remat: Remat = "none"
    scan: bool = False

    @nn.compact
    def __call__(self, x: Map, *, train: bool = False) -> tuple[Map, Coarser]:
        """Map [b, h, w, c] to the same size and, if there is a merge, to half of it."""
        pairs = self.depth // 2 if self.scan and not self.is_initializing() and self.depth > 2 else 0
        x = self._scanned(batch_sharded(x), pairs, train) if pairs else batch_sharded(x)

        def run(block: nn.Module, x: Map) -> Map:
            return block(x, deterministic=not train)

        if self.remat != "none":
            run = nn.remat(run, policy=POLICIES[self.remat])
        for i in range(2 * pairs, self.depth):
            x = run(self.block(shifted=i % 2 == 1, drop_path=self.rates[i], name=f"block_{i}"), x)
        return x, x if self.merge is None else self.merge(name="merge")(x)

    def _scanned(self, x: Map, pairs: int, train: bool) -> Map:
        """Run pairs of blocks as one loop over their stacked parameters."""
        layers = [tuple(self.variables["params"][f"block_{2 * i + j}"] for j in range(2)) for i in range(pairs)]
        rates = jnp.asarray(self.rates[: 2 * pairs]).reshape(pairs, 2) if any(self.rates) else None
        drops = train and self.has_rng("dropout")
        keys = jax.random.split(self.make_rng("dropout"), 2 * pairs).reshape(pairs, 2) if drops else None

        def body(x: Map, given: tuple[Any, Any, Any]) -> tuple[Map, None]:
            params, rate, key = given
            for j in range(2):
                block = self.block(shifted=j == 1, drop_path=0.0 if rate is None else rate[j], parent=None)
                rngs = {} if key is None else {"dropout": key[j]}
                x = block.apply({"params": params[j]}, x, deterministic=not train, rngs=rngs)  # type: ignore[assignment]
            return x, None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=POLICIES[self.remat], prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        return jax.lax.scan(body, x, (stacked, rates, keys))[0]
