"""The Vision Transformer (arXiv:2010.11929)."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax.layers.attend import Form
from vit_jax.layers.attention import QkvBias
from vit_jax.layers.block import Block
from vit_jax.layers.drop import DropPathRule
from vit_jax.layers.encoder import Encoder, Remat
from vit_jax.layers.geometry import Geometry, before_patches, num_distances, relative_offsets, rows_and_columns
from vit_jax.layers.initial import INITIAL, WeightInit
from vit_jax.layers.mlp import MlpKind
from vit_jax.layers.patch_embed import PatchEmbed, patch_grid
from vit_jax.layers.patches import Patches
from vit_jax.layers.pooling import AttentionPool, masked_mean
from vit_jax.layers.posemb import AddPositions
from vit_jax.layers.rope import Rope
from vit_jax.models import heads
from vit_jax.models.sizes import FromVariant
from vit_jax.types import Classes, Count, DtypeName, Images, Logits, Mask, Tokens, Units, UserError


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


BLOCK = re.compile(r"(?:^|/)block_(\d+)/")
# The parameters before the first block.
EMBEDDING = re.compile(r"^(stem|embed|mask_token|cls|dist|registers|posemb|pre_norm)(/|$)")


class ViT(FromVariant, nn.Module):
    """Vision Transformer: patches, prefix tokens, position embeddings, encoder, pooling, head.

    stem: a network whose feature map is cut into patches (with resnet.ResNet, a hybrid); it takes this model's dtypes.
    pool: "tok" class token, "gap" global average, "map" attention pooling; the last two see only the patches. The
    tokens are the class token (if class_token is True, or None with pool="tok"), the distillation token of a
    `distilled` model (arXiv:2012.12877; it has its own head, and the logits are the mean of both), `registers` tokens
    that are never read (arXiv:2309.16588), and the patches; with mask_token a learned token can replace masked patches.
    posemb: "learn", "sincos2d", "sincos2d_mae" (see layers/posemb.py) or "none"; with posemb_prefix the tokens before
    the patches have learned positions too; posemb_std: see AddPositions; posemb_grid: the rows and columns of the
    learned positions, which are interpolated for each image, so that images may have any shape, also as Patches
    (arXiv:2307.06304). rope: rotary positions of the
    patches, a module of layers/rope.py, in addition to `posemb`. relative_bias: a learned bias on the scores of each
    head for each offset between two tokens (arXiv:2106.08254), in each of the "blocks" or "shared" by all. pre_norm: a
    LayerNorm before the first block (CLIP, arXiv:2103.00020). norm_after_pool: apply the last LayerNorm to the pooled
    vector. qk_norm, qkv_bias: see Attention; mlp: see Mlp; attn_norm, mlp_norm, post_norm: see Block; layer_scale: its
    initial value; drop_path, drop_path_rule: see drop_path_rates; scale_by_keep: see DropPath; patch_drop: the share of
    the patches that a training step drops from each image (arXiv:2212.00794); attention: see layers/attend.py; remat,
    scan: see Encoder. rep_size adds a tanh layer of that width before the head. head: a module of models/heads.py; by
    default a linear layer initialized to zeros with the bias head_bias. weight_init: see layers/initial.py.
    num_classes=0 returns the pooled features instead of logits. All parameters have param_dtype, and all activations
    dtype, except statistics and softmax, which are float32.

    Tasks may call its stages separately: embed, encode, pool_tokens, apply_head.
    """

    num_classes: Classes
    width: Units
    depth: Count
    mlp_dim: Units
    num_heads: Count
    patch_size: Units | tuple[Units, Units]
    stride: Units | tuple[Units, Units] | None = None
    padding: Literal["valid", "same"] = "valid"
    stem: nn.Module | None = None
    embed_bias: bool = True
    pool: Literal["tok", "gap", "map"] = "tok"
    class_token: bool | None = None
    distilled: bool = False
    registers: int = 0
    mask_token: bool = False
    posemb: Literal["learn", "sincos2d", "sincos2d_mae", "none"] = "learn"
    posemb_prefix: bool = True
    posemb_std: float | Literal["width"] = 0.02
    posemb_grid: tuple[int, int] | None = None
    rope: Rope | None = None
    relative_bias: Literal["none", "blocks", "shared"] = "none"
    pre_norm: bool = False
    post_norm: bool = False
    mlp: MlpKind = "gelu_tanh"
    mlp_norm: bool = False
    qk_norm: bool = False
    attn_norm: bool = False
    qkv_bias: QkvBias = True
    layer_scale: float | None = None
    norm_eps: float = 1e-6
    norm_after_pool: bool = False
    rep_size: Units | None = None
    dropout: float = 0.0
    attn_dropout: float = 0.0
    drop_path: float = 0.0
    drop_path_rule: DropPathRule = "linear"
    patch_drop: float = 0.0
    scale_by_keep: bool = True
    head: nn.Module | None = None
    head_bias: float = 0.0
    weight_init: WeightInit = "xavier"
    attention: Form = "auto"
    remat: Remat = "none"
    scan: bool = False
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"

    def __post_init__(self):
        if self.stem is not None:
            self.stem = self.stem.clone(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.head is not None:
            self.head = heads.fitted(self.head, self.num_classes, self.dtype, self.param_dtype)
        super().__post_init__()
        for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size", "stride"):
            size = getattr(self, name)
            if size is not None and not all(1 <= number < 2**31 for number in pair(size)):
                raise UserError(f"model.{name}={size}; expected numbers of at least 1 and below 2**31.")
        for name in ("registers", "rep_size"):
            if not 0 <= (getattr(self, name) or 0) < 2**31:
                raise UserError(f"model.{name}={getattr(self, name)}; expected a number of at least 0 and below 2**31.")
        if self.posemb_std != "width" and self.posemb_std < 0:
            raise UserError(f"model.posemb_std={self.posemb_std}; expected a number of at least 0, or 'width'.")
        for name in ("dropout", "attn_dropout", "drop_path", "patch_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}; expected a rate in [0, 1).")
        if self.pool == "tok" and self.class_token is False:
            raise UserError("model.pool='tok' reads the class token; give class_token=True, or pool='gap' or 'map'.")
        if self.distilled and (self.pool != "tok" or self.rep_size):
            raise UserError(
                f"model.distilled=True has pool={self.pool!r} and rep_size={self.rep_size}; its heads stand directly "
                "on the class token and the distillation token: give pool='tok' and no rep_size."
            )

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of patches for (height, width) in pixels; UserError if they do not tile the image."""
        patch, source = pair(self.patch_size), "image"
        if self.stem is not None:
            image_size, source = self.stem.grid(image_size), "stem's output"
        return patch_grid(image_size, patch, pair(self.stride or patch), self.padding, source)

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 before the first block, 1 + i for block i, depth + 1 after the last."""
        block = BLOCK.search(name)
        return 1 + int(block[1]) if block else 0 if EMBEDDING.search(name) else self.depth + 1

    def __call__(self, images: Images | Patches, *, train: bool = False) -> Logits:
        """Map normalised images [b, h, w, c], or Patches of images of any shape, to logits [b, num_classes].

        If the collection "intermediates" is mutable, sows `tokens` [b, n, d] (the input of the first block), each
        block's `out`, `encoded` [b, n, d], `pooled` [b, d] and `features` [b, rep_size or d] (the input of the head);
        if distilled, the last two are means of both tokens, and `logits_cls` and `logits_dist` [b, num_classes] are
        sown too. If "attention" is mutable, sows each block's `weights` [b, heads, n, n]. With train=True dropout draws
        from the rng "dropout".
        """
        if isinstance(images, Patches):
            return self._of_patches(images, train)
        tokens, grid, kept = self.embed(images, train=train), self.grid((images.shape[1], images.shape[2])), None
        if self.patch_drop and train:
            tokens, kept = self._drop_patches(tokens)
        return self.apply_head(self.pool_tokens(self.encode(tokens, grid=grid, kept=kept, train=train)))

    def _of_patches(self, patches: Patches, train: bool) -> Logits:
        """Return the logits of images of different shapes; padding is masked."""
        if self.patch_drop or self.relative_bias != "none":
            raise UserError(
                "Images of any shape go without model.patch_drop and model.relative_bias; leave them unset."
            )
        tokens = self.embed(patches, train=train)
        mask = jnp.pad(patches.valid, ((0, 0), (self.num_prefix, 0)), constant_values=True)
        return self.apply_head(self.pool_tokens(self.encode(tokens, mask, grid=patches, train=train), mask))

    def features(
        self,
        images: Images,
        *,
        masked: Bool[Array, "b patches"] | None = None,
        train: bool = False,
        norm_stages: bool = False,
    ) -> dict[str, Any]:
        """Return `tokens` [b, n, d] with `prefix` tokens before the patches of `grid`, `pooled` [b, d], and `stages`.

        stages: the tokens after each block, with norm_stages also put through the last norm. masked: see embed.
        """
        grid = self.grid((images.shape[1], images.shape[2]))
        tokens = self.embed(images, masked=masked, train=train)
        encoded, stages = self.encode(tokens, grid=grid, train=train, stages=True, norm_stages=norm_stages)
        pooled = self.pool_tokens(encoded)
        return {
            "tokens": encoded,
            "grid": grid,
            "prefix": self.num_prefix,
            "pooled": pooled.mean(axis=1) if self.distilled else pooled,
            "stages": stages,
        }

    @property
    def num_prefix(self) -> int:
        """The number of tokens before the patches."""
        return sum(self.prefix_sizes.values())

    @property
    def prefix_sizes(self) -> dict[str, int]:
        """The numbers of tokens of each kind before the patches, in their order."""
        counts = (int(self._has_class_token), int(self.distilled), self.registers)
        return dict(zip(("class_token", "distillation_token", "registers"), counts, strict=True))

    @nn.compact
    def embed(
        self, images: Images | Patches, *, masked: Bool[Array, "b patches"] | None = None, train: bool = False
    ) -> Tokens:
        """Map images to the input tokens of the first block: prefix and patches with their positions.

        masked: patches that the mask token replaces, in a model that has one; they keep their positions.
        """
        patches, grid = self._patches(images)
        if self.mask_token:
            token = self.param(
                "mask_token", nn.initializers.normal(0.02), (1, 1, self.width), self._dtypes["param_dtype"]
            )
            if masked is not None:
                patches = jnp.where(masked[:, :, None], token.astype(patches.dtype), patches)
        elif masked is not None:
            raise UserError("Patches can be masked only in a model with a mask token; give model.mask_token=True.")
        prefix = self._prefix(patches)
        fields = {"std": self.posemb_std, "param_dtype": self._dtypes["param_dtype"], "name": "posemb"}
        positions, at = partial(AddPositions, self.posemb, self.posemb_grid or grid, **fields), self._at(images, grid)
        if self.posemb_prefix:
            x = positions(prefix.shape[1])(jnp.concatenate([prefix, patches], axis=1), *at)
        else:
            x = jnp.concatenate([prefix, positions()(patches, *at)], axis=1)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.pre_norm:
            x = nn.LayerNorm(self.norm_eps, **self._dtypes, name="pre_norm")(x)
        self._sow("tokens", x)
        return x

    @nn.compact
    def encode(
        self,
        tokens: Tokens,
        mask: Mask = None,
        *,
        grid: tuple[int, int] | Patches | None = None,
        kept: Int[Array, "... patches"] | None = None,
        between: Float[Array, "gaps n d"] | None = None,
        train: bool = False,
        stages: bool = False,
        norm_stages: bool = False,
    ) -> Any:
        """Encode tokens [b, n, d], all or a subset of `embed`'s; with `stages` also return the tokens after each block.

        mask: bool [b, n], False for tokens that no token attends to. grid: rows and columns of all patches of the
        images, which rotary positions and relative biases need, or the Patches of images of different shapes. kept: the
        indices on the grid of the patches in `tokens`, for each image or for all images; None for all patches. between,
        norm_stages: see Encoder.
        """
        encoder = Encoder(
            self._block(),
            self.depth,
            self.drop_path,
            self.drop_path_rule,
            not self.norm_after_pool,
            self.norm_eps,
            self.remat,
            self.scan,
            self.num_heads if self.relative_bias == "shared" else None,
            **self._dtypes,
            name="encoder",
        )
        geometry = self._geometry(tokens, grid, kept, train)
        if stages:
            return encoder(tokens, mask, geometry, between=between, train=train, stages=True, norm_stages=norm_stages)
        x = encoder(tokens, mask, geometry, between=between, train=train)
        self._sow("encoded", x)
        return x

    @nn.compact
    def pool_tokens(self, tokens: Tokens, mask: Mask = None) -> Float[Array, "b ..."]:
        """Map encoded tokens to one vector [b, d], or [b, 2, d] if distilled; masked tokens are ignored."""
        patches = tokens[:, self.num_prefix :]
        of_patches = None if mask is None else mask[:, self.num_prefix :]
        if self.pool == "tok":
            x = tokens[:, :2] if self.distilled else tokens[:, 0]
        elif self.pool == "gap":
            x = masked_mean(patches, of_patches)
        else:
            gelu = "gelu_tanh" if self.mlp == "swiglu" else self.mlp
            pool = AttentionPool(self.mlp_dim, self.num_heads, gelu, self.norm_eps, **self._dtypes, name="pool")
            x = pool(patches, of_patches)
        if self.norm_after_pool:
            x = nn.LayerNorm(self.norm_eps, **self._dtypes, name="norm")(x)
        self._sow("pooled", x.mean(axis=1) if self.distilled else x)
        return x

    @nn.compact
    def apply_head(self, pooled: Float[Array, "b ..."]) -> Logits:
        """Map the output of `pool_tokens` to logits [b, num_classes], or to the features if there are no classes."""
        features = pooled.mean(axis=1) if self.distilled else pooled
        if self.rep_size:
            features = nn.tanh(nn.Dense(self.rep_size, **self._dtypes, name="rep")(features))
        self._sow("features", features)
        if not self.num_classes:
            return features
        if not self.distilled:
            return self._head("head", features)
        logits_cls, logits_dist = self._head("head", pooled[:, 0]), self._head("head_dist", pooled[:, 1])
        self._sow("logits_cls", logits_cls)
        self._sow("logits_dist", logits_dist)
        return (logits_cls + logits_dist) / 2

    @property
    def _dtypes(self) -> dict[str, Any]:
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

    @property
    def _has_class_token(self) -> bool:
        return self.pool == "tok" if self.class_token is None else self.class_token

    def _at(self, images: Images | Patches, grid: tuple[int, int]) -> tuple[Array, ...]:
        """Return row and column of each patch and the sizes of their grids, if positions are interpolated; else ()."""
        if isinstance(images, Patches):
            return images.coords, images.grids
        if self.posemb_grid in (None, grid):
            return ()
        return rows_and_columns(grid, None)[None], jnp.asarray([grid])

    def _patches(self, images: Images | Patches) -> tuple[Tokens, tuple[int, int]]:
        """Return the embedded patches, row by row, and the numbers of rows and columns."""
        patch, source = pair(self.patch_size), "image"
        if isinstance(images, Patches):
            if self.stem is not None or (self.posemb != "none" and self.posemb_grid is None):
                raise UserError(
                    "Images of any shape need model.posemb_grid, such as (16, 16), for positions that are interpolated, or "
                    "model.posemb='none' with a rope; and no model.stem."
                )
            geometry = (patch, pair(self.stride or patch), self.padding, self.embed_bias, source)
            embed = PatchEmbed(self.width, *geometry, self.weight_init, **self._dtypes, name="embed")
            return embed(images.pixels), self.posemb_grid or (0, 0)
        if self.stem is not None:
            images, source = self.stem(images), "stem's output"
            if images.ndim != 4:
                raise UserError(
                    f"model.stem gives arrays of {images.ndim} dimensions; it must give feature maps [b, h, w, c]."
                )
        geometry = (patch, pair(self.stride or patch), self.padding, self.embed_bias, source)
        x = PatchEmbed(self.width, *geometry, self.weight_init, **self._dtypes, name="embed")(images)
        return rearrange(x, "b rows cols d -> b (rows cols) d"), (x.shape[1], x.shape[2])

    def _prefix(self, patches: Tokens) -> Float[Array, "b p d"]:
        """Return the tokens before the patches."""
        b, _, width = patches.shape
        tokens = [patches[:, :0]]
        for name, count in (
            ("cls", int(self._has_class_token)),
            ("dist", int(self.distilled)),
            ("registers", self.registers),
        ):
            if count:
                init = INITIAL[self.weight_init].token if name == "cls" else nn.initializers.normal(0.02)
                token = self.param(name, init, (1, count, width), self._dtypes["param_dtype"])
                tokens.append(jnp.tile(token.astype(patches.dtype), (b, 1, 1)))
        return jnp.concatenate(tokens, axis=1)

    def _geometry(
        self,
        tokens: Tokens,
        grid: tuple[int, int] | Patches | None,
        kept: Int[Array, "... patches"] | None,
        train: bool,
    ) -> Geometry | None:
        """Return the positions of the tokens on the grid that attention reads; None if it reads no positions."""
        if self.rope is None and self.relative_bias == "none":
            return None
        if grid is None:
            raise UserError(
                "A model with rope or relative_bias reads where its tokens are; call encode(tokens, grid=model.grid(size)), "
                "and with kept=indices if only some of the patches are left."
            )
        if isinstance(grid, Patches):
            assert self.rope is not None
            key = self.make_rng("dropout") if train and self.has_rng("dropout") else None
            places = self.rope.coords(grid.coords, grid.grids[:, None], key)
            return Geometry(before_patches(places, self.num_prefix))
        at = rows_and_columns(grid, kept)
        if at.shape[-2] + self.num_prefix != tokens.shape[1]:
            raise UserError(
                f"encode got {tokens.shape[1]} tokens; expected {self.num_prefix} and {at.shape[-2]} patches of a grid of "
                f"{grid[0]} x {grid[1]}. Give kept=indices if only some of the patches are left."
            )
        coords = offsets = None
        if self.rope is not None:
            key = self.make_rng("dropout") if train and self.has_rng("dropout") else None
            coords = before_patches(self.rope.coords(at, grid, key), self.num_prefix)
        if self.relative_bias != "none":
            offsets = relative_offsets(at, grid, self.num_prefix)
        return Geometry(coords, offsets, distances=num_distances(grid))

    def _drop_patches(self, tokens: Tokens) -> tuple[Float[Array, "b m d"], Int[Array, "b patches"]]:
        """Return the tokens with a random subset of the patches, in order, and the indices of these patches."""
        prefix, patches = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        b, n, _ = patches.shape
        draws = jax.random.uniform(self.make_rng("dropout"), (b, n))
        kept = jnp.sort(jnp.argsort(draws, axis=1)[:, : max(1, int(n * (1 - self.patch_drop)))], axis=1)
        return jnp.concatenate([prefix, jnp.take_along_axis(patches, kept[:, :, None], axis=1)], axis=1), kept

    def _block(self) -> Callable[..., Block]:
        return partial(
            Block,
            self.mlp_dim,
            self.num_heads,
            self.dropout,
            self.attn_dropout,
            mlp=self.mlp,
            norm_eps=self.norm_eps,
            qk_norm=self.qk_norm,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            attention=self.attention,
            attn_norm=self.attn_norm,
            mlp_norm=self.mlp_norm,
            post_norm=self.post_norm,
            # Each block has its own parameters.
            rope=None if self.rope is None else self.rope.clone(parent=None),
            scale_by_keep=self.scale_by_keep,
            weight_init=self.weight_init,
            **self._dtypes,
        )

    def _head(self, name: str, features: Float[Array, "b d"]) -> Logits:
        if self.head is not None:
            return (self.head if name == "head" else self.head.copy(name=name))(features)
        zeros, bias = nn.initializers.zeros, nn.initializers.constant(self.head_bias)
        return nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias, **self._dtypes, name=name)(features)

    def _sow(self, name: str, x) -> None:
        self.sow("intermediates", name, x, reduce_fn=lambda _, last: last, init_fn=lambda: None)
