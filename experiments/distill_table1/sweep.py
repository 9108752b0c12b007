"""A patient student, ViT-S/16, of a consistent teacher: for 300, 1200, 4800 and 9600 epochs of ImageNet-1k."""

from vit_jax.runs.sweeps.space import Sweep, product

# The paper's, a BiT-ResNet-152x2, does not load here.
TEACHER = "hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k"


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is source and evals of configs/imagenet.py, as in source=folder:PATH,evals=all."""
    more = f",{arg}" if arg else ""
    configs = [
        f"configs/distill.py:variant=S/16,epochs={epochs},teacher={TEACHER}{more}" for epochs in (300, 1200, 4800, 9600)
    ]
    return Sweep(config=configs[0], runs=product({"config": configs}), metric="val/accuracy")
