"""Train SimMIM's ViT on ImageNet-1k (arXiv:2111.09886; microsoft/SimMIM, configs/vit_base__800ep).

    python -m vit_jax.main --config=configs/simmim_i1k.py --workdir=PRETRAINED
    python -m vit_jax.main --config=configs/simmim_i1k.py:stage=finetune,init=PRETRAINED --workdir=DIR

    stage     pretrain, for 800 epochs, or finetune, for 100
    source and evals: see configs/imagenet.py

Published for B/16, fine-tuned on ImageNet-1k at 224 px: 83.8 %.

The original has relative position biases, one table shared by all layers in pretraining and one per layer afterwards;
this config has fixed positions. Batches of 2,048 follow its example for Swin. None of this was run here.
"""

import ml_collections

from configs import arguments, deit, imagenet, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "stage=pretrain[,init=MODEL][,source=...][,evals=val]"."""
    given = arguments.parse(arg, stage=("pretrain", "finetune"), init="", **imagenet.ARGUMENTS)
    if given["stage"] == "finetune":
        config = stages.finetune(given, 100, 4 * 1.25e-3, 0.65, 0.1, warmup=20, start=1e-6)
        config.batch_size = 2048
        config.optim.clip_norm = 5.0
        config.optim.schedule.count_warmup = True
        return config
    config = stages.pretrain(given, "random_resized_crop(SIZE, 0.67)|flip", 800, 2048, 4 * 1e-4, warmup=10)
    config.model = {
        "type": "vit.ViT", "variant": "B/16", "posemb": "sincos2d", "mlp": "gelu", "weight_init": "trunc_normal",
        "layer_scale": 0.1, "drop_path": 0.1, "mask_token": True,
    }  # fmt: skip
    config.task = {"type": "simmim.Simmim", "mask_ratio": 0.6, "unit": 2, "mean": deit.MEAN, "std": deit.STD}
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 5.0
    config.optim.schedule = {
        "type": "multistep", "warmup_steps": 10 / 800, "start": 5e-7 / 1e-4, "milestones": (700 / 800,), "factor": 0.1,
    }  # fmt: skip
    return config
