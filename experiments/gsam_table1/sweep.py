"""ViTs and Mixers on ImageNet-1k without strong augmentation: by AdamW, SAM and GSAM."""

from vit_jax.runs.sweeps.space import Sweep, product


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is source and evals of configs/imagenet.py, as in source=folder:PATH,evals=all."""
    more = f",{arg}" if arg else ""
    configs = [
        f"configs/sam.py:model={model},variant={variant},method={method}{more}"
        for model in ("vit", "mixer")
        for variant in ("S/32", "S/16", "B/32", "B/16")
        for method in ("adamw", "sam", "gsam")
    ]
    return Sweep(config=configs[0], runs=product({"config": configs}), metric="val/accuracy")
