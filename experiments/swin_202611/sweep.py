"""A small Swin against the ViT of configs/cifar10.py on CIFAR-10: as many parameters, the same recipe and steps, three seeds."""

from vit_jax.runs.sweeps.space import Sweep, product, seeds

STEPS = 600
SWIN = {
    "type": "swin.Swin", "width": 46, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window": 4, "patch_size": 2, "mlp_ratio": 2.0,
}  # fmt: skip
VIT = {
    "type": "vit.ViT", "width": 128, "depth": 6, "mlp_dim": 256, "num_heads": 4, "patch_size": 4, "pool": "gap",
    "posemb": "sincos2d",
}  # fmt: skip


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is folder:PATH or tfds:cifar10, as in configs/cifar10.py."""
    if not arg:
        raise ValueError("found no argument, expected folder:PATH or tfds:cifar10")
    runs = product({"model": [VIT, SWIN]}, seeds(3), [{"steps": STEPS, "evals.test.every": STEPS}])
    return Sweep(config=f"configs/cifar10.py:{arg}", runs=runs, metric="test/accuracy")
