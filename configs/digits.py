"""A small ViT on the 1,797 handwritten digits of scikit-learn."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """1,437 training and 360 test images of 8x8 pixels, as train_test_split(test_size=360, stratify=y, random_state=0)."""
    config = common.get_config()
    config.steps = 300
    config.batch_size = 128
    config.model = {
        "type": "vit.ViT", "width": 64, "depth": 4, "mlp_dim": 128, "num_heads": 4,
        "patch_size": 2, "pool": "gap", "posemb": "learn", "drop_path": 0.1,
    }  # fmt: skip
    config.data.source = {"type": "digits.Digits", "split": "train"}
    config.data.preprocess = "pad_crop(8, 1, mode='zero')"
    config.optim.lr = 2e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule.warmup_steps = 30
    config.checkpoint.every = 100
    config.evals.test = {
        "type": "classification.Classification",
        "source": {"type": "digits.Digits", "split": "test"},
        "preprocess": "",
        "batch_size": 360,
        "every": 100,
    }
    return config
