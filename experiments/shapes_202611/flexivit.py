"""One flexible network against four with patches of one size, at as many steps, on CIFAR-10."""

from vit_jax.runs.sweeps.space import Sweep

SMALL = {"width": 64, "depth": 4, "mlp_dim": 256, "num_heads": 4, "pool": "gap"}
PATCHES = (2, 4, 8, 16)
FLEXIBLE = {"type": "flexivit.FlexiViT", "patch_sizes": PATCHES, "base_patch": 16, "posemb_grid": (8, 8)}


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is folder:PATH."""
    if not arg:
        raise ValueError("found no argument, expected folder:PATH")
    runs = [{"model": SMALL | {"type": "vit.ViT", "patch_size": 4}, "model.patch_size": patch} for patch in PATCHES]
    runs += [{"model": SMALL | FLEXIBLE, "model.patch_size": 4}]
    common = {"epochs": None, "steps": 600, "checkpoint.every": 300}
    return Sweep(config=f"configs/flexivit.py:data={arg}", runs=[run | common for run in runs], metric="test/accuracy")
