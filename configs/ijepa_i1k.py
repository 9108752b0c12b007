"""Train I-JEPA on ImageNet-1k (arXiv:2301.08243; facebookresearch/ijepa, configs/in1k_vith14_ep300.yaml).

    python -m vit_jax.main --config=configs/ijepa_i1k.py --workdir=DIR

    epochs    300, or any other number above 40. source: see configs/imagenet.py

Published for H/14 on 16 A100, on ImageNet-1k's validation images (tables 1 and 2): linear 79.3 %, with 1 % of the labels 73.3 %.

The running average of the encoder is evaluated, on the mean of its patches. The original drops patches of contexts and
targets so that all images in a process have equally many; here each image keeps all of its patches. None of this was
run here.
"""

import ml_collections

from configs import arguments, deit, imagenet, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "epochs=300[,source=...]"."""
    given = arguments.parse(arg, epochs=300, source=imagenet.ARGUMENTS["source"])
    crop = "random_resized_crop(SIZE, 0.3)"
    config = stages.pretrain(given, crop, given["epochs"], 2048, 1e-3, warmup=40, start=2e-4, end=1e-6)
    config.model = {
        "type": "vit.ViT", "variant": "H/14", "pool": "gap", "posemb": "sincos2d", "mlp": "gelu",
        "weight_init": "trunc_normal", "dtype": "bfloat16",
    }  # fmt: skip
    config.task = {
        "type": "ijepa.Ijepa", "blocks": 4, "target_scale": (0.15, 0.2), "target_aspect": (0.75, 1.5),
        "context_scale": (0.85, 1.0), "predictor_width": 384, "predictor_depth": 12, "predictor_heads": 16,
        "momentum": 0.996, "mean": deit.MEAN, "std": deit.STD,
    }  # fmt: skip
    config.optim.weight_decay, config.optim.weight_decay_end = 0.04, 0.4
    return config
