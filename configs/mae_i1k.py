"""Train MAE on ImageNet-1k (arXiv:2111.06377, tables 8 to 10; facebookresearch/mae, PRETRAIN.md, FINETUNE.md).

    python -m vit_jax.main --config=configs/mae_i1k.py:variant=B/16 --workdir=PRETRAINED
    python -m vit_jax.main --config=configs/mae_i1k.py:variant=B/16,stage=finetune,init=PRETRAINED --workdir=DIR
    python -m vit_jax.main --config=configs/mae_i1k.py:variant=B/16,stage=probe,init=PRETRAINED --workdir=DIR

    variant   B/16, L/16, H/14
    stage     pretrain; finetune: the whole network; probe: a linear layer on batch-normalised class token features
    epochs    of pretraining: 1600 or 800. source and evals: see configs/imagenet.py

Published, on ImageNet-1k's validation images at 224 px after 1,600 epochs, for B, L, H: fine-tuned 83.6, 85.9, 86.9 % (table 3;
the repository's weights reach 83.66, 85.95, 86.93 %), linear probe 68.0, 75.8, 76.6 % (the repository's code 67.8, 76.0,
77.2 %). L takes 42 hours on 64 V100 for 800 epochs; fine-tuning B takes 7 hours on 32.

Query, key and value are initialized separately; the repository draws one matrix for the three. None of this was run here.
"""

import ml_collections

from configs import arguments, deit, imagenet, stages

# Epochs, base learning rate, layer decay and stochastic depth of fine-tuning, and the epochs of a linear probe.
FINETUNE = {"B/16": (100, 5e-4, 0.65, 0.1, 90), "L/16": (50, 1e-3, 0.75, 0.2, 50), "H/14": (50, 1e-3, 0.75, 0.3, 50)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=B/16[,stage=pretrain][,init=MODEL][,epochs=1600][,source=...][,evals=val]"."""
    given = arguments.parse(
        arg,
        variant=tuple(FINETUNE),
        stage=("pretrain", "finetune", "probe"),
        init="",
        epochs=1600,
        **imagenet.ARGUMENTS,
    )
    epochs, blr, layer_decay, drop_path, probed = FINETUNE[given["variant"]]
    if given["stage"] == "finetune":
        return stages.finetune(given, epochs, 4 * blr, layer_decay, drop_path, warmup=5)
    if given["stage"] == "probe":
        return _probe(given, probed)
    crop = "random_resized_crop(SIZE, 0.2, method='bicubic')|flip"
    config = stages.pretrain(given, crop, given["epochs"], 4096, 16 * 1.5e-4, warmup=40)
    config.model = {
        "type": "vit.ViT",
        "variant": given["variant"],
        "posemb": "sincos2d_mae",
        "mlp": "gelu",
        "weight_init": "mae",
    }
    config.task = {
        "type": "mae.Mae", "mask_ratio": 0.75, "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16,
        "decoder_posemb": "sincos2d_mae", "norm_pixels": True, "mean": deit.MEAN, "std": deit.STD,
    }  # fmt: skip
    config.optim.rule.b2 = 0.95
    config.optim.weight_decay = 0.05
    config.optim.decay = "(kernel|cls|mask_token)$"
    return config


def _probe(given: dict, epochs: int) -> ml_collections.ConfigDict:
    head = {"type": "batch_norm_linear", "std": 0.01}
    config = stages.begin(given, "random_resized_crop(SIZE, method='bicubic')|flip", {"head": head})
    config.freeze = "^(?!head)"
    config.epochs, config.batch_size = epochs, 16_384
    config.optim.rule = {"type": "lars"}
    config.optim.lr = 64 * 0.1
    config.optim.schedule = {"type": "cosine", "warmup_steps": 10 / epochs}
    return config
