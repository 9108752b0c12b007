"""Train iBOT on ImageNet-1k (arXiv:2111.07832; bytedance/ibot, README.md, main_ibot.py and loader.py).

    python -m vit_jax.main --config=configs/ibot_i1k.py --workdir=DIR

    epochs    800, or any other number above 30. source: see configs/imagenet.py

Published for S/16 on two nodes of 8 GPUs, on ImageNet-1k's validation images: kNN 75.2, linear 77.9, fine-tuned 82.3 %.

Positions are fixed; the original's are learned, and interpolated for small crops. The norm of the whole gradient is
clipped, not each parameter's; the last layer has unit columns, while the original trains their lengths. None of this
was run here.
"""

import ml_collections

from configs import arguments, deit, imagenet, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "epochs=800[,source=...]"."""
    given = arguments.parse(arg, epochs=800, source=imagenet.ARGUMENTS["source"])
    epochs = given["epochs"]
    if epochs <= 30:
        raise ValueError(f"found epochs={epochs}, expected more than the 30 in which the temperature rises")
    spec = stages.multi_crop((0.25, 1.0), (0.05, 0.25), crops=10)
    config = stages.pretrain(given, spec, epochs, 1024, 4 * 5e-4, warmup=10, end=1e-6)
    config.model = {
        "type": "vit.ViT", "variant": "S/16", "posemb": "sincos2d", "mlp": "gelu", "weight_init": "trunc_normal",
        "drop_path": 0.1, "mask_token": True,
    }  # fmt: skip
    config.task = {
        "type": "ibot.Ibot", "outputs": 8192, "hidden": 2048, "bottleneck": 256, "momentum": 0.996,
        "teacher_temperature": (0.04, 0.07), "warmup": 30 / epochs, "freeze_last": 1 / epochs,
        "mask_prob": 0.5, "mask_ratio": (0.1, 0.5), "smallest_block": 16, "mean": deit.MEAN, "std": deit.STD,
    }  # fmt: skip
    config.optim.weight_decay, config.optim.weight_decay_end = 0.04, 0.4
    config.optim.decay = stages.DECAY
    config.optim.clip_norm = 3.0
    return config
