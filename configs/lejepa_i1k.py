"""Train LeJEPA on ImageNet-1k (arXiv:2511.08544; rbalestr-lab/lejepa, README.md and MINIMAL.md).

    python -m vit_jax.main --config=configs/lejepa_i1k.py --workdir=DIR

    variant   L/14, H/14
    weight    of SIGReg, the only hyperparameter: 0.05, or any other fraction
    epochs    100, or any other number. source: see configs/imagenet.py

Published for H/14, linear on ImageNet-1k's validation images: 79 % (abstract); for L after 100 epochs, a linear probe
of CIFAR-10, CIFAR-100, Flowers and Pets on all of their images: 96.50, 83.71, 91.21, 89.74 %.

Views, optimiser and schedule follow the repository's advice; it gives no batch size and no warm-up length for ImageNet,
so 512 images, and one epoch and the projector as in its small example, are our choice. Its probes read the class tokens
of two layers, kNN here only the last one's. Positions are fixed. None of this was run here.
"""

import ml_collections

from configs import arguments, deit, imagenet, stages


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "variant=L/14[,weight=0.05][,epochs=100][,source=...]"."""
    given = arguments.parse(arg, variant=("L/14", "H/14"), weight=0.05, epochs=100, source=imagenet.ARGUMENTS["source"])
    colours = f"{stages.COLOURS}|maybe(0.5, 'gaussian_blur()')|maybe(0.2, 'solarize()')"
    view = f"random_resized_crop(SIZE, 0.3, 1.0)|{colours}"
    spec = stages.views(view, view, 6, f"random_resized_crop(98, 0.05, 0.3)|{colours}")
    config = stages.pretrain(given, spec, given["epochs"], 512, 5e-4, warmup=1, end=5e-7)
    config.model = {
        "type": "vit.ViT", "variant": given["variant"], "posemb": "sincos2d", "mlp": "gelu", "weight_init": "trunc_normal",
        "drop_path": 0.1, "dtype": "bfloat16",
    }  # fmt: skip
    config.task = {
        "type": "lejepa.Lejepa", "weight": given["weight"], "directions": 1024, "hidden": 2048, "outputs": 128,
        "mean": deit.MEAN, "std": deit.STD,
    }  # fmt: skip
    config.optim.weight_decay = 0.05
    return config
