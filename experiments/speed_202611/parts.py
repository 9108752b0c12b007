"""The parts of a step of ViT-S/16 on processors, beside torch: python experiments/speed_202611/parts.py [--dtype=float32]

Prints milliseconds, the lowest of all calls, with both sides in turns; GFLOP/s of products. Ours are the functions of
vit_jax/layers, compiled one at a time, so that their operands are in the caches more often than in a step.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from vit_jax.layers import attend, ops
from vit_jax.layers.mlp import GELUS

TOKENS, WIDTH, HIDDEN, HEADS = 196, 384, 1536, 6


def passes(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Return a compiled function of a gradient and arguments that gives the arguments' gradients."""
    return jax.jit(lambda gradient, *given: jax.vjp(function, *given)[1](gradient))


def torch_passes(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Return the same for torch."""

    def run(gradient: torch.Tensor, *given: torch.Tensor) -> Any:
        leaves = [x.detach().requires_grad_() for x in given]
        return torch.autograd.grad(function(*leaves), leaves, gradient)

    return run


def parts(batch: int) -> dict[str, tuple[float, tuple[tuple[int, ...], ...], Any, Any]]:
    """Return each part's FLOPs (0: not a product), shapes of its arguments, and how both sides compute it."""
    rows, functional = batch * TOKENS, torch.nn.functional
    flops = 2.0 * rows * WIDTH * HIDDEN
    x, hidden, kernel, bias = (rows, WIDTH), (rows, HIDDEN), (WIDTH, HIDDEN), (HIDDEN,)
    heads = (batch, TOKENS, HEADS, WIDTH // HEADS)
    norm = nn.LayerNorm(1e-6, dtype=None, use_bias=False)

    def attention(*heads: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(*(a.transpose(1, 2) for a in heads)).transpose(1, 2)

    def theirs(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.addmm(bias, x, kernel)

    def to_inputs(gradient: Any, x: Any, kernel: Any) -> Any:
        return jax.vjp(lambda x: ops.linear(x, kernel), x)[1](gradient)

    def to_kernel(gradient: Any, x: Any, kernel: Any) -> Any:
        return jax.vjp(lambda kernel: ops.linear(x, kernel), kernel)[1](gradient)

    return {
        "linear layer, forward": (flops, (x, kernel, bias), jax.jit(ops.linear), theirs),
        "to its inputs": (flops, (hidden, x, kernel), jax.jit(to_inputs), lambda g, x, kernel: g @ kernel.T),
        "to its kernel": (flops, (hidden, x, kernel), jax.jit(to_kernel), lambda g, x, kernel: x.T @ g),
        "linear layer, both passes": (3 * flops, (hidden, x, kernel, bias), passes(ops.linear), torch_passes(theirs)),
        "attention, forward": (0, (heads,) * 3, jax.jit(attend.plain), attention),
        "attention, both passes": (0, (heads,) * 4, passes(attend.plain), torch_passes(attention)),
        "GELU (tanh), both passes": (
            0, (hidden, hidden), passes(lambda x: ops.elementwise(GELUS["gelu_tanh"], x)),
            torch_passes(lambda x: functional.gelu(x, approximate="tanh")),
        ),
        "LayerNorm, both passes": (
            0, (x, x, (WIDTH,)), passes(lambda x, scale: norm.apply({"params": {"scale": scale}}, x)),
            torch_passes(lambda x, scale: functional.layer_norm(x, (WIDTH,), scale)),
        ),
    }  # fmt: skip


def seconds(run: Callable[[], Any]) -> float:
    """Return the time of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    flags = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"jax {jax.__version__}, torch {torch.__version__}, {flags.dtype}, batch {flags.batch_size}\n")
    print("| part | ours, ms | torch, ms | ours and torch, GFLOP/s |\n| --- | --- | --- | --- |")
    for name, (flops, shapes, ours, theirs) in parts(flags.batch_size).items():
        arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
        given = [jnp.asarray(x, flags.dtype) for x in arrays]
        tensors = [torch.asarray(x).to(getattr(torch, flags.dtype)) for x in arrays]
        sides = (lambda: jax.block_until_ready(ours(*given)), lambda: theirs(*tensors))  # noqa: B023
        for run in sides:
            run()
        one, other = (
            min(times) for times in zip(*([seconds(run) for run in sides] for _ in range(flags.rounds)), strict=True)
        )
        rates = f"{flops / one / 1e9:.0f}, {flops / other / 1e9:.0f}" if flops else ""
        print(f"| {name} | {1e3 * one:.2f} | {1e3 * other:.2f} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
