"""A stack of residual blocks."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.drop import DropPathRule, drop_path_rates
from vit_jax.layers.geometry import Geometry, relative_bias
from vit_jax.sharding import batch_sharded
from vit_jax.types import Mask, Params, Tokens

Remat = Literal["none", "dots", "inner", "full"]

# The values that the backward pass keeps in memory; it recomputes the rest of a block.
POLICIES: dict[str, Callable[..., bool]] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "inner": jax.checkpoint_policies.save_only_these_names("qkv", "hidden"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Encoder(nn.Module):
    """`depth` blocks, each made by block(drop_path=..., name=...), and a final LayerNorm if `norm` is set.

    drop_path, drop_path_rule: see drop_path_rates. remat: the part of a block that the backward pass recomputes:
    "none", all but the outputs of its linear layers ("dots"), all but queries, keys, values and the MLP's hidden layer
    ("inner"), or all ("full", a third more FLOPs; arXiv:1604.06174). scan: compile the blocks once, as the body of a
    loop, so that compile time does not grow with the depth, at the cost of a copy of their parameters and gradients in
    every step. Parameters, gradients and results are the same, except for the random draws of dropout and drop_path.
    shared_bias_heads: the heads of a table of relative biases that all blocks share; None if each block has its own
    table or none.
    """

    block: Callable[..., nn.Module]
    depth: int
    drop_path: float = 0.0
    drop_path_rule: DropPathRule = "linear"
    norm: bool = True
    norm_eps: float = 1e-6
    remat: Remat = "none"
    scan: bool = False
    shared_bias_heads: int | None = None
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        mask: Mask = None,
        geometry: Geometry | None = None,
        *,
        between: Float[Array, "gaps n d"] | None = None,
        train: bool = False,
        stages: bool = False,
        norm_stages: bool = False,
    ) -> Any:
        """Map tokens [b, n, d] to [b, n, d]; with `stages` also return the list of tokens after each block.

        mask: bool [b, n], False for tokens that no token attends to. geometry: positions that the attention reads.
        between: vectors added to the tokens after each block but the last. norm_stages: also apply the final LayerNorm
        to the tokens after each block.
        """
        if geometry is not None and geometry.offsets is not None and self.shared_bias_heads:
            shape = (geometry.distances, self.shared_bias_heads)
            table = self.param("relative_bias", nn.initializers.zeros, shape, self.param_dtype)
            bias = relative_bias(table, geometry.offsets)
            geometry = dataclasses.replace(geometry, offsets=None, bias=bias)
        extras = () if geometry is None else (geometry,)
        x, after = batch_sharded(x), []
        rates = drop_path_rates(self.drop_path, self.depth, self.drop_path_rule)
        if self.scan and not self.is_initializing():
            x, stacked = self._scanned(x, mask, extras, between, rates, train, stages)
            after = [] if stacked is None else list(stacked)
        else:

            def run(block: nn.Module, x: Tokens, mask: Mask, *extras: Geometry) -> Tokens:
                return batch_sharded(block(x, mask, *extras, deterministic=not train))

            if self.remat != "none" and not self.is_initializing():
                run = nn.remat(run, policy=POLICIES[self.remat])
            for i, rate in enumerate(rates):
                x = run(self.block(drop_path=rate, name=f"block_{i}"), x, mask, *extras)
                if between is not None and i < self.depth - 1:
                    x = x + between[i : i + 1].astype(x.dtype)
                after += [x] if stages else []
        if self.norm:
            norm = nn.LayerNorm(self.norm_eps, dtype=self.dtype, param_dtype=self.param_dtype, name="norm")
            x, after = norm(x), [norm(y) for y in after] if norm_stages else after
        return (x, after) if stages else x

    def _scanned(
        self,
        x: Tokens,
        mask: Mask,
        extras: tuple[Geometry, ...],
        between: Float[Array, "gaps n d"] | None,
        rates: list[float],
        train: bool,
        stages: bool,
    ) -> tuple[Tokens, Float[Array, "depth b n d"] | None]:
        """Run the blocks as one loop over their stacked parameters."""
        names = [f"block_{i}" for i in range(self.depth)]
        layers = [self.variables["params"][name] for name in names]
        kept = [name for name in ("intermediates", "attention") if self.is_mutable_collection(name)]
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None
        # If every rate is 0, there is nothing to draw.
        inputs = (
            jax.tree.map(lambda *leaves: jnp.stack([self._narrowed(leaf) for leaf in leaves]), *layers),
            jnp.asarray(rates) if any(rates) else None,
            None if key is None else jax.random.split(key, self.depth),
            None if between is None else jnp.pad(between, ((0, 1), (0, 0), (0, 0))).astype(x.dtype),
        )

        def body(x: Tokens, layer: tuple[Params, Any, Any, Any]) -> tuple[Tokens, Any]:
            params, rate, key, added = layer
            block = self.block(drop_path=0.0 if rate is None else rate, parent=None)
            rngs = {} if key is None else {"dropout": key}
            x, sown = block.apply(
                {"params": params}, x, mask, *extras, deterministic=not train, rngs=rngs, mutable=kept
            )
            x = batch_sharded(x if added is None else x + added[None])
            return x, (sown, x if stages else None)

        if self.remat != "none":
            body = jax.checkpoint(body, policy=POLICIES[self.remat], prevent_cse=False)
        x, (sown, after) = jax.lax.scan(body, x, inputs)
        for collection, values in sown.items():
            for i, name in enumerate(names):
                self.put_variable(collection, name, jax.tree.map(lambda leaf, i=i: leaf[i], values))
        return x, after

    def _narrowed(self, leaf: jax.Array) -> jax.Array:
        """Return a kernel in the dtype of its product, since the copy is smaller; scales of norms are not converted."""
        return leaf.astype(self.dtype) if leaf.ndim > 1 else leaf
