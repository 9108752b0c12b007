"""The fine-tuning of the original ViT at 384 px: 25 runs from its published weights, 20 from weights that :pretrain makes."""

from vit_jax.runs.sweeps.space import Sweep, product, run_names

DATA = ["cifar10", "cifar100", "pets", "flowers", "imagenet"]
# Those of ImageNet-21k, by the authors.
PUBLISHED = [f"imagenet21k/ViT-{name}" for name in ("B_16", "B_32", "L_16", "L_32", "H_14")]
# The authors have published none of ImageNet-1k alone. Their place is also in paper.json.
PRETRAINING = product(
    {"config": [f"configs/vit.py:variant={name},data=i1k" for name in ("B/16", "B/32", "L/16", "L/32")]}
)
PRETRAINED = [f"workdirs/vit_table5/pretrained/{name}" for name in run_names(PRETRAINING)]


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is "pretrain" for the ImageNet-1k weights, which go to workdirs/vit_table5/pretrained, or nothing."""
    if arg == "pretrain":
        return Sweep(config="configs/vit.py", runs=PRETRAINING, metric="val/accuracy")
    if arg:
        raise ValueError(f"found {arg!r}, expected pretrain or nothing")
    # Patches of 14 pixels do not tile 384; the original leaves out the last six.
    sizes = {model: 378 if model.endswith("H_14") else 384 for model in PUBLISHED + PRETRAINED}
    configs = [
        f"configs/finetune.py:data={data},size={size},model={model}" for model, size in sizes.items() for data in DATA
    ]
    return Sweep(config=configs[0], runs=product({"config": configs}), metric="test/accuracy")
