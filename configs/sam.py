"""ViTs and Mixers in flat minima, without strong augmentation: SAM (arXiv:2106.01548) and GSAM (arXiv:2203.08065).

    python -m vit_jax.main --config=configs/sam.py:method=gsam,variant=B/32 --workdir=DIR
    python -m vit_jax.main --config=configs/sam.py:method=sam,model=mixer,variant=B/16,rho=0.2 --workdir=DIR

    method    gsam or sam
    rho       of sam, the length of its step uphill: 0.2
    model     vit or mixer; variant S/32, S/16, B/32, B/16. source and evals: see configs/imagenet.py

Published, on ImageNet-1k's validation images at 224 px, against AdamW on the same images (abstracts): SAM +5.3 points for
ViT-B/16, +11.0 for Mixer-B/16; GSAM +5.4 for ViT-B/32, which is +3.2 against SAM. Both methods take two passes a step. The
authors of the first used 64 TPU chips (google-research/vision_transformer, issue 153); hours were not to be found.

The settings are big_vision's of GSAM for ViT-B/32 (configs/proj/gsam/vit_i1k_gsam_no_aug.py), here for both methods and all
models: rho of the other models and SAM's own settings were not to be found; 0.2 is what others took for ViT-B/16 (issue 153).
There each chip goes uphill by its own part of the batch, here all go as one: with fewer chips the authors raise rho (issue
153). rho would reach rho_min at a learning rate of 0, there at a hundredth of the peak, where the decay ends: at most 0.005
apart. None of this was run here.
"""

import ml_collections

from configs import arguments, common, imagenet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "method=gsam,model=vit,variant=B/32[,rho=0.2][,source=...][,evals=val]"."""
    given = arguments.parse(
        arg,
        method=("gsam", "sam"),
        model=("vit", "mixer"),
        variant=("B/32", "B/16", "S/32", "S/16"),
        rho=0.0,
        **imagenet.ARGUMENTS,
    )
    if given["rho"] and given["method"] == "gsam":
        raise ValueError("found rho with method=gsam, whose rho_min and rho_max are set: give method=sam")
    config = common.get_config()
    imagenet.fill(config, given)
    config.epochs = 300
    config.batch_size = 4096
    config.model = {"type": "mixer.Mixer"} if given["model"] == "mixer" else {"type": "vit.ViT", "pool": "gap"}
    config.model.update({"variant": given["variant"], "head_bias": -10.0})
    config.task.loss_name = "sigmoid_xent"
    if given["method"] == "gsam":
        config.grad = {"type": "sam.Gsam", "rho_max": 0.6, "rho_min": 0.1, "alpha": 0.6, "adaptive": False}
    else:
        config.grad = {"type": "sam.Sam", "rho": given["rho"] or 0.2}
    config.optim.lr = 3e-3
    # The paper's. big_vision's 0.001, which is not multiplied by the learning rate, would be a third.
    config.optim.weight_decay = 0.3
    config.optim.schedule = {"type": "linear", "warmup_steps": 10_000, "end": 0.01}
    return config
