"""Train DINO on ImageNet-1k (arXiv:2104.14294; facebookresearch/dino, README.md and main_dino.py).

    python -m vit_jax.main --config=configs/dino_i1k.py:variant=S/16,epochs=100 --workdir=DIR
    python -m vit_jax.main --config=configs/dino_i1k.py:variant=S/16,epochs=300 --workdir=DIR

    variant   S/16, B/16
    epochs    100: the plain run, with batches of 512 images for S; or more: batches of 1,024, and a teacher temperature
              of 0.07 instead of 0.04 after 30 epochs. source: see configs/imagenet.py

Published for S/16, kNN and linear on ImageNet-1k's validation images: 69.3, 73.8 % after 100 epochs in 1.75 days on 8
GPUs; 73.3, 76.1 % after 300 in 2.6 days on 16; the released weights 74.5, 77.0 %, for B/16 76.1, 78.2 %.

Positions are fixed; the original's are learned, and interpolated for small crops. The norm of the whole gradient is
clipped, not each parameter's. The last layer always has unit columns, while the 300-epoch run also trains their
lengths. The temperature changes with the step, not the epoch. kNN during training uses 256 px images cropped to 224.
None of this was run here.
"""

import ml_collections

from configs import arguments, deit, imagenet, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=S/16[,epochs=100][,source=...]"."""
    given = arguments.parse(arg, variant=("S/16", "B/16"), epochs=100, source=imagenet.ARGUMENTS["source"])
    epochs, plain = given["epochs"], given["epochs"] == 100
    batch_size = 512 if plain and given["variant"] == "S/16" else 1024
    spec = stages.multi_crop((0.4, 1.0), (0.05, 0.4))
    config = stages.pretrain(given, spec, epochs, batch_size, 5e-4 * batch_size / 256, warmup=10, end=1e-6)
    config.model = {
        "type": "vit.ViT", "variant": given["variant"], "posemb": "sincos2d", "mlp": "gelu", "weight_init": "trunc_normal",
        "drop_path": 0.1,
    }  # fmt: skip
    config.task = {
        "type": "dino.Dino", "outputs": 65_536, "hidden": 2048, "bottleneck": 256, "momentum": 0.996,
        "teacher_temperature": (0.04, 0.04 if plain else 0.07), "warmup": 0.0 if plain else 30 / epochs,
        "freeze_last": 1 / epochs, "mean": deit.MEAN, "std": deit.STD,
    }  # fmt: skip
    config.optim.weight_decay, config.optim.weight_decay_end = 0.04, 0.4
    config.optim.decay = "(kernel|cls|prototypes)$"
    config.optim.clip_norm = 3.0
    return config
