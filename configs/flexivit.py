"""Train FlexiViT (arXiv:2212.08013): one network for many patch sizes, drawn in each step.

    python -m vit_jax.main --config=configs/flexivit.py:data=folder:PATH --workdir=DIR
    python -m vit_jax.main --config=configs/flexivit.py:data=folder:PATH,teacher=MODEL --workdir=DIR

`data` is folder:PATH with train and test folders of class folders of 32 px images; patches have 2, 4, 8 or 16 pixels.
With `teacher`, its predictions replace the labels, as the paper's models are distilled from a ViT-B/8 (section 3.5).
There is no published number for this setting.
"""

import ml_collections

from configs import arguments, common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=folder:PATH[,teacher=REF]"."""
    given = arguments.parse(arg, data="folder:images", teacher="")
    kind, _, place = given["data"].partition(":")
    if kind != "folder" or not place:
        raise ValueError(f"found data={given['data']}, expected folder:PATH")
    config = common.get_config()
    config.epochs = 60.0
    config.model = {
        "type": "flexivit.FlexiViT", "width": 192, "depth": 6, "mlp_dim": 768, "num_heads": 3, "patch_size": 4,
        "patch_sizes": (2, 4, 8, 16), "base_patch": 16, "posemb_grid": (8, 8), "pool": "gap",
    }  # fmt: skip
    source = {"type": "folder.Folder", "path": place}
    config.data.source = source | {"split": "train"}
    config.data.preprocess = "resize(32)|pad_crop(32, 4)|flip"
    if given["teacher"]:
        config.teacher = given["teacher"]
        config.task = {"type": "distill.Distill", "kind": "soft", "weight": 1.0}
    config.optim.weight_decay = 0.05
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.evals.test = {
        "type": "classification.Classification", "source": source | {"split": "test"}, "preprocess": "resize(32)",
        "batch_size": 256,
    }  # fmt: skip
    return config
