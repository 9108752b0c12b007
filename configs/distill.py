"""Distil with a patient and consistent teacher (arXiv:2106.05237; big_vision, configs/proj/distill).

    python -m vit_jax.main --config=configs/distill.py:teacher=MODEL,variant=S/16,epochs=300 --workdir=DIR
    python -m vit_jax.main --config=configs/distill.py:teacher=MODEL,data=pets,epochs=1000 --workdir=DIR

    teacher   any reference to a model with the classes of the data
    variant   of the student, a ViT: S/16, Ti/16, B/32, B/16
    data      i1k at 224 px; flowers or pets at 128 px (TFDS). source and evals, only for i1k: see configs/imagenet.py
    epochs    i1k 300, 1200, 4800, 9600 or any other number; flowers 10000, 100000, 1000000; pets 1000, 3000, 30000

Published for a BiT-ResNet-50 distilled from a BiT-ResNet-152x2 of 83.0 %, on ImageNet-1k's validation images at 224 px
(table 1): 80.30, 81.54, 82.18, 82.31 % after 300, 1200, 4800, 9600 epochs; 300 take about 15 hours on a TPUv3-32.

Student and teacher see the same crops and the same mixtures, with ratios uniform in [0, 1], and the student only learns
the teacher's function. These ResNets are not available here, so the student is a ViT, for which no number is published.
Its learning rate is at most 0.001, which is our choice; the paper uses 0.03 on ImageNet-1k. The weight decay per step
is the paper's. A teacher of another image size sees the same crop resized; the paper resizes the original's. On
ImageNet-1k we hold out a hundredth of the training images, big_vision two. None of this was run here.
"""

import ml_collections

from configs import arguments, common, imagenet

# TFDS splits for training, model selection and testing.
SMALL = {
    "flowers": ("oxford_flowers102", "train", {"val": "validation", "test": "test"}),
    "pets": ("oxford_iiit_pet", "train[:90%]", {"val": "train[90%:]", "test": "test"}),
}
# Temperature, learning rate, and relative weight decay per step at its peak, by number of epochs.
LENGTHS = {
    "flowers": {100_000: (1.0, 0.001, 1e-4), 10_000: (10.0, 0.003, 3e-4), 1_000_000: (1.0, 0.0003, 1e-5)},
    "pets": {3_000: (10.0, 0.003, 3e-4), 1_000: (5.0, 0.01, 1e-3), 30_000: (2.0, 0.003, 1e-5)},
}
MOST_LR = 1e-3


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "teacher=MODEL[,variant=S/16][,data=i1k][,epochs=300][,source=...][,evals=val]"."""
    given = arguments.parse(
        arg,
        teacher="",
        variant=("S/16", "Ti/16", "B/32", "B/16"),
        data=("i1k", *SMALL),
        epochs=0,
        **imagenet.ARGUMENTS,
    )
    if not given["teacher"]:
        raise ValueError(f"found {arg!r}, expected teacher=MODEL in it")
    config = common.get_config()
    if given["data"] == "i1k":
        imagenet.fill(config, given)
        config.batch_size, warmup_steps = 4096, 5_000
        epochs, (temperature, lr, decay) = given["epochs"] or 300, (1.0, 0.03, 3e-4)
    else:
        lengths = LENGTHS[given["data"]]
        epochs = given["epochs"] or next(iter(lengths))
        if epochs not in lengths or given["source"] or given["evals"] == "all":
            known = " or ".join(map(str, lengths))
            raise ValueError(f"found {arg!r}; data={given['data']} comes from TFDS, with settings for epochs={known}")
        _fill_small(config, *SMALL[given["data"]])
        config.batch_size, warmup_steps = 512, 1_500
        temperature, lr, decay = lengths[epochs]
    config.epochs = epochs
    config.teacher = given["teacher"]
    config.model = {"type": "vit.ViT", "variant": given["variant"], "posemb_std": "width"}
    config.task = {
        "type": "distill.Distill",
        "kind": "soft",
        "weight": 1.0,
        "temperature": temperature,
        "mix": {"type": "Mixup", "alpha": 1.0},
    }
    config.optim.rule.mu_dtype = "bfloat16"
    config.optim.lr = min(lr, MOST_LR)
    config.optim.weight_decay = decay / config.optim.lr
    config.optim.schedule.warmup_steps = warmup_steps
    return config


def _fill_small(config: ml_collections.ConfigDict, name: str, train: str, held_out: dict[str, str]) -> None:
    source = {"type": "tfds.Tfds", "name": name}
    config.image_size = 128
    config.data.source = source | {"split": train}
    config.data.preprocess = "inception_crop(SIZE)|flip"
    for title, split in held_out.items():
        config.evals[title] = {
            "type": "classification.Classification",
            "source": source | {"split": split},
            "preprocess": "resize_small(SIZE*5//4)|central_crop(SIZE)",
            "batch_size": 256,
            "every": 500,
        }
