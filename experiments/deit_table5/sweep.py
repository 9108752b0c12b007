"""DeiT's three sizes: alone, and distilled for 300 and for 1000 epochs."""

from vit_jax.runs.sweeps.space import Sweep, product

VARIANTS = ["Ti/16", "S/16", "B/16"]
# The ViT among the paper's teachers (table 2).
TEACHER = "hf:timm/deit_base_patch16_224.fb_in1k"


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is source and evals of configs/imagenet.py, as in source=folder:PATH,evals=all."""
    more = f",{arg}" if arg else ""
    ways = ["epochs=300", f"epochs=300,teacher={TEACHER}", f"epochs=1000,teacher={TEACHER}"]
    configs = [f"configs/deit.py:variant={variant},{way}{more}" for way in ways for variant in VARIANTS]
    return Sweep(config=configs[0], runs=product({"config": configs}), metric="val/accuracy")
