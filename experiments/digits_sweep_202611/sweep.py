"""Learning rate x width x 2 seeds on the digits."""

from vit_jax.runs.sweeps.space import Sweep, product, seeds


def get_sweep() -> Sweep:
    """12 runs."""
    return Sweep(
        config="configs/digits.py",
        runs=product({"optim.lr": [1e-3, 3e-3], "model.width": [32, 64, 96]}, seeds(2)),
        metric="test/accuracy",
        mode="max",
    )
