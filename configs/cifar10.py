"""Train a small ViT (0.8 M parameters) on CIFAR-10 from scratch, sized for a CPU.

    python -m vit_jax.main --config=configs/cifar10.py:folder:PATH --workdir=DIR     # PATH/{train,test}/<class>/*.jpg
    python -m vit_jax.main --config=configs/cifar10.py --workdir=DIR                 # TFDS, prepared before

Patches of 4 pixels give 64 tokens, and beat overlapping ones of 8 (experiments/cifar10_patches_202611), which timm does
not support. Muon learns more than AdamW in this few epochs. There is no published number for this setting.
"""

import ml_collections

from configs import common


def get_config(data: str = "tfds:cifar10") -> ml_collections.ConfigDict:
    """`data` is "folder:PATH", with train and test folders of class folders, or "tfds:NAME"."""
    kind, _, place = data.partition(":")
    if kind not in ("folder", "tfds") or not place:
        raise ValueError(f"found the data {data!r}, expected folder:PATH or tfds:NAME")
    source = {"type": "folder.Folder", "path": place} if kind == "folder" else {"type": "tfds.Tfds", "name": place}

    config = common.get_config()
    config.steps = 2400
    config.batch_size = 128
    config.model = {
        "type": "vit.ViT", "width": 128, "depth": 6, "mlp_dim": 256, "num_heads": 4,
        "patch_size": 4, "pool": "gap", "posemb": "sincos2d",
    }  # fmt: skip
    config.data.source = source | {"split": "train"}
    config.data.preprocess = "pad_crop(32, 4)|flip"
    # One thread keeps up, and leaves the other cores to the step.
    config.data.threads = 1
    config.optim.rule = {"type": "muon", "momentum": 0.95, "b2": 0.99}
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule.warmup_steps = 0.05
    config.checkpoint.every = 500
    config.log.every = 50
    config.evals.test = {
        "type": "classification.Classification",
        "source": source | {"split": "test"},
        "preprocess": "resize(32)",
        "batch_size": 500,
        "every": 600,
    }
    return config
