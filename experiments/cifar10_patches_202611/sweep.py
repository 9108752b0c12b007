"""Position embedding, pooling, patch size and overlap on CIFAR-10, one at a time: 8 networks, 3 seeds."""

from vit_jax.runs.sweeps.space import Sweep, product, seeds

# A network of 0.14 M parameters and one epoch: a run that two cores pay for in a little more than a minute.
NETWORK = {"model.width": 64, "model.depth": 4, "model.mlp_dim": 128}
LENGTH = {"steps": 400, "optim.schedule.warmup_steps": 40}
BASE = {
    "model.patch_size": 4,
    "model.stride": 4,
    "model.padding": "valid",
    "model.posemb": "sincos2d",
    "model.pool": "gap",
}
CHANGES = [
    {},
    {"model.posemb": "learn"},
    {"model.posemb": "none"},
    {"model.pool": "tok"},
    {"model.pool": "map"},
    {"model.patch_size": 8, "model.stride": 8},
    # Overlapping: 7x7 patches, and with a border of zeros the 8x8 of the base.
    {"model.patch_size": 8},
    {"model.patch_size": 8, "model.padding": "same"},
]


def get_sweep(arg: str = "tfds:cifar10") -> Sweep:
    """`arg` is the data, as of configs/cifar10.py: folder:PATH or tfds:cifar10."""
    return Sweep(
        config=f"configs/cifar10.py:{arg}",
        runs=product([NETWORK | LENGTH | BASE | change for change in CHANGES], seeds(3)),
        metric="test/accuracy",
        mode="max",
    )
