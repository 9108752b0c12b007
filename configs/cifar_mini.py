"""Pretrain without labels on CIFAR-10 in about 20 minutes on two cores. Not a recipe itself.

The configs mae_, dino_, ibot_ and lejepa_cifar_mini share the network of 6 layers, width 128 and patches of 4 pixels,
the normalisation and the evaluators: kNN and the rank of the features every quarter, and a linear probe at the end.
"""

import ml_collections

from configs import arguments, common
from configs.dino_cifar import MEAN, STD, data_of

HEADS = {"hidden": 512, "bottleneck": 128, "outputs": 1024, "momentum": 0.99, "teacher_temperature": (0.04, 0.07)}


def get_config(
    arg: str, task: dict, preprocess: str, steps: int, batch_size: int, lr: float, **model
) -> ml_collections.ConfigDict:
    """`arg` is "data=DATA", with DATA folder:PATH or tfds:NAME."""
    train, test = data_of(arguments.parse(arg, data="tfds:cifar10")["data"])
    config = common.get_config()
    config.steps, config.batch_size = steps, batch_size
    config.model = {
        "type": "vit.ViT", "width": 128, "depth": 6, "mlp_dim": 256, "num_heads": 4, "patch_size": 4, "posemb": "sincos2d",
    } | model  # fmt: skip
    config.task = task | {"mean": MEAN, "std": STD}
    config.data.source = train
    config.data.preprocess = preprocess
    config.optim.lr = lr
    config.optim.rule.b2 = 0.95
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 3.0
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.checkpoint.every = steps // 4
    measured = {"source": test, "preprocess": "resize(32)", "batch_size": 500}
    config.evals.knn = {"type": "knn.Knn", "train": train, "every": steps // 4, **measured}
    config.evals.collapse = {"type": "collapse.Collapse", "every": steps // 4, **measured}
    config.evals.probe = {
        "type": "probe.LinearProbe",
        "train": train,
        "strengths": (0.01, 0.1),
        "max_iter": 200,
        **measured,
    }
    return config
