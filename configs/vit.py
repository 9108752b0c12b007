"""Pretrain the Vision Transformer as in its paper (arXiv:2010.11929, table 3); configs/finetune.py fine-tunes it.

    python -m vit_jax.main --config=configs/vit.py:variant=B/16,data=i21k --workdir=DIR

    variant   B/16, B/32, L/16, L/32
    data      i1k or i21k; source and evals: see configs/imagenet.py

Published, fine-tuned at 384 px (table 5), in %, for B/16, B/32, L/16, L/32 and, from ImageNet-21k, for H/14:

                from ImageNet-21k               from ImageNet-1k
    CIFAR-10    98.95 98.79 99.16 99.13 99.27   98.13 97.77 97.86 97.94
    CIFAR-100   91.67 91.97 93.44 93.04 93.82   87.13 86.31 86.35 87.07
    Pets        94.43 93.02 94.73 93.09 94.82   93.81 92.04 93.64 91.35
    Flowers     99.38 99.11 99.61 99.19 99.51   89.49 85.43 89.66 86.36
    ImageNet    83.97 81.28 85.15 80.99 85.13   77.91 73.38 76.53 71.16

Without fine-tuning, at 224 px (google-research/vision_transformer, issue 62): ImageNet-1k B/16 74.79, B/32 69.19, L/16
72.59, L/32 66.90 %, all after 300 epochs; the authors' ImageNet-21k validation images B/16 47.88, B/32 44.04, L/16
49.90, L/32 45.42 %. L/16 on ImageNet-21k took 0.23k TPUv3-core-days (table 2).

Loss, hidden layer and bias of the head, and the end of the decay at 1e-5 follow the published weights (issues 2 and
34). The paper does not say how its ImageNet-1k was split; here a hundredth is held out. Crops are drawn as in
TensorFlow, but resized with antialiasing, which its code lacks. None of this was run here.
"""

import ml_collections

from configs import arguments, common, imagenet

# A hidden layer before the head is as wide as the model.
WIDTHS = {"Ti": 192, "S": 384, "B": 768, "L": 1024}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=B/16,data=i1k[,source=...][,evals=val]"."""
    given = arguments.parse(arg, variant=("B/16", "B/32", "L/16", "L/32"), data=("i1k", "i21k"), **imagenet.ARGUMENTS)
    config = common.get_config()
    imagenet.fill(config, given)
    config.batch_size = 4096
    config.model = {
        "type": "vit.ViT",
        "variant": given["variant"],
        "rep_size": WIDTHS[given["variant"][0]],
        "dropout": 0.1,
        "head_bias": -10.0,
    }
    config.task.loss_name = "sigmoid_xent"
    if given["data"] == "i1k":
        config.epochs = 300
        config.optim.lr, config.optim.weight_decay = 3e-3, 0.3
        config.optim.schedule = {"type": "cosine", "warmup_steps": 10_000}
    else:
        config.epochs = 90
        config.optim.lr, config.optim.weight_decay = 1e-3, 0.03
        config.optim.schedule = {"type": "linear", "warmup_steps": 10_000, "end": 0.01}
        # The paper clips gradients only on ImageNet-1k.
        config.optim.clip_norm = None
    return config
