"""Pretrain ViT-g and ViT-G (Scaling Vision Transformers, arXiv:2106.04560, section 3).

    python -m vit_jax.main --config=configs/scaling_vit.py:variant=g/14,data=i21k --workdir=DIR

    variant   g/14 and G/14, or smaller ones: Ti/16, S/32, S/16, B/32, B/16, L/16
    data      i21k or i1k; source and evals: see configs/imagenet.py
    steps     1000000, the last 50k of which cool down (the last 10k in the paper's runs of up to 60k steps)

Published with JFT-3B, which is not public: G/14, fine-tuned on ImageNet-1k, 90.45 %, or with ten images per class 84.86
%; g/14 after 1.2M steps, with ten images per class, 83.3 %. For ImageNet-21k the paper has scaling laws (figure 4). It
does not state the training time of these runs.

Batch 16384, modified Adafactor, a reciprocal square root schedule with warm-up and cool-down, attention pooling, and a
weight decay of 3 in the head and 0.03 elsewhere, all as in big_vision (configs/proj/scaling_laws/train_vit_g.py). The
settings are for JFT-3B, without augmentation; fewer images may overfit. None of this was run here.
"""

import ml_collections

from configs import arguments, common, imagenet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=g/14,data=i21k,steps=1000000[,source=...][,evals=val]"."""
    given = arguments.parse(
        arg,
        variant=("g/14", "G/14", "Ti/16", "S/32", "S/16", "B/32", "B/16", "L/16"),
        data=("i21k", "i1k"),
        steps=1_000_000,
        **imagenet.ARGUMENTS,
    )
    config = common.get_config()
    imagenet.fill(config, given)
    config.steps = given["steps"]
    config.batch_size = 16_384
    config.model = {
        "type": "vit.ViT",
        "variant": given["variant"],
        "pool": "map",
        "posemb_std": "width",
        "head_bias": -10.0,
    }
    config.task.loss_name = "sigmoid_xent"
    config.optim.rule = {"type": "adafactor", "momentum": 0.9, "beta2_cap": 0.999}
    config.optim.lr = 8e-4
    config.optim.weight_decay = 0.03
    config.optim.multipliers = [("^head/", {"weight_decay": 100.0})]
    config.optim.schedule = {
        "type": "rsqrt",
        "warmup_steps": 10_000,
        "timescale": 10_000,
        "cooldown_steps": 50_000 if given["steps"] > 60_000 else 10_000,
    }
    return config
