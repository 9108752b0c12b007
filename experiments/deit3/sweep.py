"""DeiT-III: `:pretrain` makes 12 models, of which two S/16 need nothing more at 224 px; the rest of the table is fine-tuned."""

from vit_jax.runs.sweeps.space import Sweep, product, run_names

# (variant, data, epochs) of pretraining, and the image sizes of fine-tuning after it.
MODELS = {
    ("S/16", "i1k", 400): (),
    ("B/16", "i1k", 400): (224,),
    ("L/16", "i1k", 400): (224,),
    ("H/14", "i1k", 400): (224,),
    ("S/16", "i1k", 800): (384,),
    ("B/16", "i1k", 800): (224, 384),
    ("L/16", "i1k", 800): (224, 384),
    ("H/14", "i1k", 800): (224,),
    ("S/16", "i21k", 240): (224,),
    ("B/16", "i21k", 240): (224,),
    ("L/16", "i21k", 240): (224,),
    ("H/14", "i21k", 90): (224,),
}
RECIPES = [f"configs/deit3.py:variant={variant},data={data},epochs={epochs}" for variant, data, epochs in MODELS]
PRETRAINING = product({"config": RECIPES})
# This place is also in paper.json.
PRETRAINED = [f"workdirs/deit3/pretrained/{name}" for name in run_names(PRETRAINING)]


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is "pretrain" for the models to fine-tune, which go to workdirs/deit3/pretrained, or nothing."""
    if arg == "pretrain":
        return Sweep(config=RECIPES[0], runs=PRETRAINING, metric="val/accuracy")
    if arg:
        raise ValueError(f"found {arg!r}, expected pretrain or nothing")
    configs = [
        f"{recipe},size={size},init={model}"
        for recipe, model, sizes in zip(RECIPES, PRETRAINED, MODELS.values(), strict=True)
        for size in sizes
    ]
    return Sweep(config=configs[0], runs=product({"config": configs}), metric="val/accuracy")
