"""AugReg's table 3: 9 models trained on ImageNet-1k, and 9 fine-tuned from the published weights of ImageNet-21k."""

from vit_jax.runs.sweeps.space import Sweep, chain, product

TRAINED = product(
    {
        "config": [
            f"configs/augreg.py:data=i1k,variant={variant}"
            for variant in ("Ti/16", "S/32", "S/16", "B/32", "B/16", "L/16", "R+Ti/16", "R26+S/32", "R50+L/32")
        ]
    }
)
# The recommended weights of ImageNet-21k and the learning rates of the published fine-tuned ones, by the authors' README.
PUBLISHED = {
    "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0": 0.03,
    "S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0": 0.01,
    "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0": 0.03,
    "B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0": 0.01,
    "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0": 0.03,
    "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0": 0.01,
    "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0": 0.03,
    "R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0": 0.01,
    "R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1": 0.01,
}
# What finetune.py measures as `test`, under the name that the table has a column for.
VALIDATION = {
    "val": {
        "type": "classification.Classification",
        "source": {"type": "tfds.Tfds", "name": "imagenet2012", "split": "validation"},
        "preprocess": "resize_small(SIZE*7//6)|central_crop(SIZE)",
        "batch_size": 64,
    }
}


def get_sweep() -> Sweep:
    """18 runs."""
    tuned = [
        {
            "config": f"configs/finetune.py:data=imagenet,recipe=augreg,model=augreg/{name}",
            "optim.lr": lr,
            "evals": VALIDATION,
        }
        for name, lr in PUBLISHED.items()
    ]
    return Sweep(config="configs/augreg.py", runs=chain(tuned, TRAINED), metric="val/accuracy")
