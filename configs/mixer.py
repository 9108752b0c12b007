"""Train the MLP-Mixer from scratch (arXiv:2105.01601, appendix B, table 4; big_vision, configs/mlp_mixer_i1k.py).

    python -m vit_jax.main --config=configs/mixer.py:variant=B/16,data=i1k --workdir=DIR

    variant   B/16, L/16
    data      i1k or i21k; source and evals: see configs/imagenet.py

Published, on ImageNet-1k's validation images: trained on ImageNet-1k B/16 76.44, L/16 71.76 %, trained on ImageNet-21k
and fine-tuned 80.64, 82.89 %, all at 224 px (table 3). B/16 on ImageNet-1k takes 2 h 11 min on a TPUv3-128 for
big_vision, which reports 76.3 %. For ImageNet-1k this is big_vision's config; for ImageNet-21k it is the paper's table,
with the bias of big_vision's vit_i21k.py. The paper's weight decay of 0.1 is multiplied by the learning rate, as here.
None of this was run here.
"""

import ml_collections

from configs import arguments, common, imagenet

# RandAugment's magnitude for two layers, and mixup's alpha.
AUG = {("B/16", "i1k"): (15, 0.5), ("L/16", "i1k"): (15, 0.5), ("B/16", "i21k"): (10, 0.2), ("L/16", "i21k"): (20, 0.5)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=B/16,data=i1k[,source=...][,evals=val]"."""
    given = arguments.parse(arg, variant=("B/16", "L/16"), data=("i1k", "i21k"), **imagenet.ARGUMENTS)
    magnitude, alpha = AUG[given["variant"], given["data"]]
    config = common.get_config()
    imagenet.fill(config, given, f"inception_crop(SIZE)|flip|randaug(2, {magnitude})")
    config.epochs = 300
    config.batch_size = 4096
    config.model = {
        "type": "mixer.Mixer",
        "variant": given["variant"],
        "drop_path": 0.1,
        "scale_by_keep": False,
        "head_bias": imagenet.HEAD_BIAS[given["data"]],
    }
    config.task.loss_name = "sigmoid_xent"
    config.task.mix = {"type": "Mixup", "alpha": alpha}
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.schedule = {"type": "linear", "warmup_steps": 10_000, "end": 1e-5}
    return config
