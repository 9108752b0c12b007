"""Train DeiT-III (arXiv:2204.07118; facebookresearch/deit, README_revenge.md).

    python -m vit_jax.main --config=configs/deit3.py:variant=B/16,epochs=800 --workdir=PRETRAINED
    python -m vit_jax.main --config=configs/deit3.py:variant=B/16,epochs=800,init=PRETRAINED --workdir=DIR

    variant   S/16, B/16, L/16, H/14
    data      i1k or i21k, for pretraining; source and evals: see configs/imagenet.py
    epochs    of pretraining: 400 or 800 on ImageNet-1k, 240 (H/14 90) on ImageNet-21k
    init      the pretrained run: its model is fine-tuned on ImageNet-1k, for 20 epochs, or 50 from ImageNet-21k
    size      of fine-tuning: 224, or 384 for S, B, L pretrained for 800 epochs on ImageNet-1k

Published, on ImageNet-1k's validation images at 224 px, for S, B, L, H: 81.4, 83.8, 84.9, 85.2 % after 800 epochs on
ImageNet-1k; 80.4, 83.5, 84.5, 85.1 % after 400; 83.1, 85.7, 87.0, 87.2 % from ImageNet-21k. At 384 px 83.4, 85.0, 85.8
% for S, B, L. S is pretrained on ImageNet-1k at 224 px and then needs no fine-tuning. Settings and numbers for 400
epochs are the paper's as given by affjljoo3581/deit3-jax; there, B takes 9.5 hours on a TPU v4-64 for 800 epochs,
including fine-tuning.

H is pretrained at 154 and 126 px, not 160 and 128, because the original drops the last pixels. LAMB adapts query, key
and value separately. Mixup, cutmix and initial weights are as in deit.py. None of this was run here.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, common, deit, imagenet

RESIZE = "resize_small(SIZE, 'bicubic')|central_crop(SIZE)"
# Image size, learning rate on ImageNet-1k, and stochastic depth for (data, epochs).
PRETRAIN = {
    "S/16": ({"i1k": 224, "i21k": 224}, 4e-3, {("i1k", 400): 0.0, ("i1k", 800): 0.05, ("i21k", 240): 0.05}),
    "B/16": ({"i1k": 192, "i21k": 224}, 3e-3, {("i1k", 400): 0.1, ("i1k", 800): 0.2, ("i21k", 240): 0.1}),
    "L/16": ({"i1k": 192, "i21k": 224}, 3e-3, {("i1k", 400): 0.4, ("i1k", 800): 0.45, ("i21k", 240): 0.3}),
    "H/14": ({"i1k": 154, "i21k": 126}, 3e-3, {("i1k", 400): 0.5, ("i1k", 800): 0.6, ("i21k", 90): 0.5}),
}
# Stochastic depth of fine-tuning after (data, epochs), at an image size.
FINETUNE = {
    ("i1k", 400, 224): {"B/16": 0.1, "L/16": 0.4, "H/14": 0.5},
    ("i1k", 800, 224): {"B/16": 0.2, "L/16": 0.45, "H/14": 0.55},
    ("i1k", 800, 384): {"S/16": 0.0, "B/16": 0.15, "L/16": 0.4},
    ("i21k", 240, 224): {"S/16": 0.05, "B/16": 0.15, "L/16": 0.4},
    ("i21k", 90, 224): {"H/14": 0.45},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=S/16,data=i1k,epochs=800[,init=MODEL][,size=224][,source=...][,evals=val]"."""
    given = arguments.parse(
        arg, variant=tuple(PRETRAIN), data=("i1k", "i21k"), epochs=0, init="", size=224, **imagenet.ARGUMENTS
    )
    variant, data = given["variant"], given["data"]
    sizes, lr, rates = PRETRAIN[variant]
    epochs = given["epochs"] or max(length for of, length in rates if of == data)
    if (data, epochs) not in rates:
        lengths = " or ".join(str(length) for of, length in rates if of == data)
        raise ValueError(f"found epochs={epochs}, expected {lengths}, for which {variant} has settings")
    if given["init"]:
        return _finetune(given, epochs)
    if given["size"] != 224:
        raise ValueError(f"found size={given['size']} without init=MODEL; it is the image size of fine-tuning")

    config = _base(given, sizes[data])
    config.epochs = epochs
    config.model.update(
        {
            "type": "vit.ViT",
            "variant": variant,
            "mlp": "gelu",
            "layer_scale": 1e-4,
            "posemb_prefix": False,
            "weight_init": "trunc_normal",
        }
    )
    config.model.drop_path = rates[data, epochs]
    _lamb(config, lr if data == "i1k" else 1e-3, 0.05 if epochs == 800 else 0.02, epochs)
    if data == "i1k":
        config.data.preprocess = f"{deit.CROP}|three_augment(0.3)"
        config.data.repeats = 3
        # Every class in a mixture has target 1.
        config.task.update({"loss_name": "bce", "target_threshold": 0.0, "label_smoothing": 0.0})
        config.task.mix = deit.MIX
    return config


def _base(given: dict, size: int) -> ml_collections.ConfigDict:
    """Return the config shared by all stages, with the most common data: simple crop, cutmix and label smoothing."""
    config = common.get_config()
    imagenet.fill(config, given, "simple_crop(SIZE)|flip|three_augment(0.3)", RESIZE, whole=True)
    config.image_size = size
    config.batch_size = 2048
    # LAMB scales each step by the parameter's norm, so a head initialized to zero would stay near zero.
    config.model = {"drop_path_rule": "constant", "head": deit.HEAD}
    config.task.label_smoothing = 0.1
    config.task.update({"mix": {"type": "CutMix", "alpha": 1.0}, "mean": deit.MEAN, "std": deit.STD})
    return config


def _lamb(config: ml_collections.ConfigDict, lr: float, weight_decay: float, epochs: int) -> None:
    config.optim.rule = {"type": "lamb", "eps": 1e-8}
    config.optim.lr, config.optim.weight_decay = lr, weight_decay
    config.optim.schedule = deit.schedule(lr, epochs)


def _finetune(given: dict, epochs: int) -> ml_collections.ConfigDict:
    rates = FINETUNE.get((given["data"], epochs, given["size"]), {})
    if given["variant"] not in rates:
        known = (
            f"{', '.join(of)} of {data}, {length} epochs, at {size}" for (data, length, size), of in FINETUNE.items()
        )
        raise ValueError(
            f"found {given['variant']} of {given['data']}, {epochs} epochs, at size={given['size']}; there are settings to "
            f"fine-tune {'; '.join(known)}"
        )
    config = _base(given | {"data": "i1k"}, given["size"])
    config.model.drop_path = rates[given["variant"]]
    del config.init
    config.init = {"ref": given["init"], "head": "auto", "posemb": "bicubic_no_antialias", "allow": placeholder(str)}
    if given["data"] == "i21k":
        config.epochs = 50
        _lamb(config, 3e-4, 0.02, 50)
        return config
    config.epochs, config.batch_size = 20, 512
    config.data.preprocess = f"{deit.CROP}|{deit.RAND_AUGMENT}"
    config.task.mix = deit.MIX
    config.optim.lr, config.optim.weight_decay = 1e-5, 0.1
    config.optim.schedule = deit.schedule(1e-5, 20)
    config.optim.clip_norm = placeholder(float)
    return config
