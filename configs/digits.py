"""Train a small ViT on scikit-learn's 1,797 handwritten digits."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Train on 1,437 and test on 360 images of 8x8 pixels, resized to 20x20 to allow small rotations and shifts."""
    config = common.get_config()
    config.steps = 1100
    config.batch_size = 64
    config.model = {
        "type": "vit.ViT", "width": 64, "depth": 3, "mlp_dim": 128, "num_heads": 4,
        "patch_size": 4, "pool": "gap", "posemb": "learn",
    }  # fmt: skip
    config.task.label_smoothing = 0.1
    config.data.source = {"type": "digits.Digits", "split": "train"}
    config.data.preprocess = "resize(20)|rotate(10.0)|pad_crop(20, 1, mode='zero')"
    config.data.threads = 1
    config.optim.rule.b2 = 0.99
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.5
    config.optim.schedule.warmup_steps = 0.1
    config.checkpoint.every = 200
    config.evals.test = {
        "type": "classification.Classification",
        "source": {"type": "digits.Digits", "split": "test"},
        "preprocess": "resize(20)",
        "batch_size": 360,
        "every": 200,
    }
    return config
