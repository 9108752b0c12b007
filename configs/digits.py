"""A small ViT on the 1,797 handwritten digits of scikit-learn."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """1,437 training and 360 test images of 8x8 pixels, drawn at 16x16 so that they can be turned and shifted a little."""
    config = common.get_config()
    config.steps = 1100
    config.batch_size = 64
    config.model = {
        "type": "vit.ViT", "width": 64, "depth": 3, "mlp_dim": 128, "num_heads": 4,
        "patch_size": 8, "stride": 2, "pool": "gap", "posemb": "learn",
    }  # fmt: skip
    config.task.label_smoothing = 0.1
    config.data.source = {"type": "digits.Digits", "split": "train"}
    config.data.preprocess = "resize(16)|rotate(10.0)|pad_crop(16, 1, mode='zero')"
    config.data.threads = 1
    config.optim.rule.b2 = 0.99
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.5
    config.optim.schedule.warmup_steps = 0.1
    config.checkpoint.every = 200
    config.evals.test = {
        "type": "classification.Classification",
        "source": {"type": "digits.Digits", "split": "test"},
        "preprocess": "resize(16)",
        "batch_size": 360,
        "every": 200,
    }
    return config
