"""Train a classifier for images of any shape: native aspect ratio, several sequence lengths, one model (NaFlex).

    python -m vit_jax.main --config=configs/naflex.py:data=folder:PATH --workdir=DIR

`data` is folder:PATH with train and test folders of classes. Each training image is resized to one of three patch
budgets (NaViT, arXiv:2307.06304; SigLIP 2, arXiv:2502.14786, section 2.4.2), positions are interpolated for each, and
the model is evaluated at each budget. For pairs, use the same transforms in configs/siglip.py. There is no published
number for this setting.
"""

import ml_collections

from configs import arguments, common

BUDGETS = {"mini": (16, 36, 64), "S/16": (64, 144, 256), "B/16": (64, 144, 256)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=folder:PATH[,size=mini|S/16|B/16]"."""
    given = arguments.parse(arg, data="folder:images", size=("mini", "S/16", "B/16"))
    kind, _, place = given["data"].partition(":")
    if kind != "folder" or not place:
        raise ValueError(f"found data={given['data']}, expected folder:PATH")
    mini, budgets = given["size"] == "mini", BUDGETS[given["size"]]
    patch, side = (8, 8) if mini else (16, 16)
    shape = (
        {"width": 192, "depth": 6, "mlp_dim": 768, "num_heads": 3, "patch_size": 8}
        if mini
        else {"variant": given["size"]}
    )

    config = common.get_config()
    config.epochs = 60.0
    config.batch_size = 128 if mini else 1024
    config.model = {"type": "vit.ViT", **shape, "pool": "map", "posemb_grid": (side, side)}
    source = {"type": "folder.Folder", "path": place}
    config.data.source = source | {"split": "train"}
    config.data.preprocess = f"flip|fit({patch}, {budgets})|patchify({patch}, {budgets[-1]})"
    config.data.eval_preprocess = f"resize({side * patch})"
    config.optim.weight_decay = 0.05
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    for budget in budgets:
        config.evals[f"test_{budget}"] = {
            "type": "classification.Classification", "source": source | {"split": "test"},
            "preprocess": f"fit({patch}, {budget})|patchify({patch}, {budget})", "batch_size": 128,
        }  # fmt: skip
    return config
