"""Train ViTs and Mixers in flat minima, without strong augmentation: SAM (arXiv:2106.01548), GSAM (arXiv:2203.08065).

    python -m vit_jax.main --config=configs/sam.py:method=gsam,variant=B/32 --workdir=DIR
    python -m vit_jax.main --config=configs/sam.py:method=sam,model=mixer,variant=B/16,rho=0.2 --workdir=DIR

    method    gsam or sam, or adamw, the baseline for both
    rho       for sam, the length of its step uphill: 0.2
    model     vit or mixer; variant S/32, S/16, B/32, B/16. source and evals: see configs/imagenet.py

Published, on ImageNet-1k's validation images at 224 px, by AdamW, SAM and GSAM (GSAM's table 1), in %:

    ViT      S/32 68.4 70.5 73.8   S/16 74.4 78.1 79.5   B/32 71.4 73.6 76.8   B/16 74.6 79.9 81.0
    Mixer    S/32 63.9 66.7 68.6   S/16 68.8 72.9 75.0   B/32 62.5 72.4 73.6   B/16 66.4 77.4 77.8

SAM and GSAM take two passes per step. SAM's authors used 64 TPU chips (google-research/vision_transformer, issue 153);
the training time was not found.

The settings follow GSAM's table 4, shown in its authors' repository (juntang-zhuang/GSAM, img/), and big_vision
(configs/proj/gsam/vit_i1k_gsam_no_aug.py); the other methods use them too. SAM's rho was not found; 0.2 was used by
others for ViT-B/16 (issue 153). There each chip goes uphill by its own part of the batch, here by the whole batch: with
fewer chips the authors raise rho (issue 153). rho would reach rho_min at a learning rate of 0, but in big_vision at a
hundredth of the peak, at the end of the decay: a difference of at most 0.006. None of this was run here.
"""

import ml_collections

from configs import arguments, common, imagenet

# rho_max, rho_min and alpha for GSAM (table 4).
GSAM = {
    "vit": {"S/32": (0.6, 0.0, 0.4), "S/16": (0.6, 0.0, 1.0), "B/32": (0.6, 0.1, 0.6), "B/16": (0.6, 0.2, 0.4)},
    "mixer": {"S/32": (0.5, 0.0, 0.2), "S/16": (0.5, 0.0, 0.6), "B/32": (0.7, 0.2, 0.05), "B/16": (0.5, 0.2, 0.01)},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "method=gsam,model=vit,variant=B/32[,rho=0.2][,source=...][,evals=val]"."""
    given = arguments.parse(
        arg,
        method=("gsam", "sam", "adamw"),
        model=("vit", "mixer"),
        variant=("B/32", "B/16", "S/32", "S/16"),
        rho=0.0,
        **imagenet.ARGUMENTS,
    )
    if given["rho"] and given["method"] != "sam":
        raise ValueError(
            f"found rho with method={given['method']}; it belongs to method=sam; gsam's rho_min and rho_max are fixed"
        )
    config = common.get_config()
    imagenet.fill(config, given)
    config.epochs = 300
    config.batch_size = 4096
    config.model = (
        {"type": "mixer.Mixer"}
        if given["model"] == "mixer"
        else {"type": "vit.ViT", "pool": "gap", "posemb_std": "width"}
    )
    config.model.update({"variant": given["variant"], "head_bias": -10.0})
    config.task.loss_name = "sigmoid_xent"
    if given["method"] == "gsam":
        rho_max, rho_min, alpha = GSAM[given["model"]][given["variant"]]
        config.grad = {"type": "sam.Gsam", "rho_max": rho_max, "rho_min": rho_min, "alpha": alpha, "adaptive": False}
    elif given["method"] == "sam":
        config.grad = {"type": "sam.Sam", "rho": given["rho"] or 0.2}
    config.optim.lr = 3e-3
    # The paper's. big_vision's 0.001, which is not multiplied by the learning rate, would be a third of it.
    config.optim.weight_decay = 0.3
    config.optim.schedule = {"type": "linear", "warmup_steps": 10_000, "end": 0.01}
    return config
