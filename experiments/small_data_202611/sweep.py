"""The digits and CIFAR-10 configs from scratch: three seeds of the one, the seed of the other that was measured."""

from vit_jax.runs.sweeps.space import Sweep, seeds


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is nothing for the digits, or the images of CIFAR-10, folder:PATH or tfds:cifar10."""
    if arg:
        return Sweep(config=f"configs/cifar10.py:{arg}", runs=seeds(1), metric="test/accuracy")
    return Sweep(config="configs/digits.py", runs=seeds(3), metric="test/accuracy")
