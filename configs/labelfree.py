"""Try or compare any label-free objective at small scale, on scikit-learn's digits or a folder of 32 px images.

    python -m vit_jax.main --config=configs/labelfree.py:ibot --workdir=DIR
    python -m vit_jax.main --config=configs/labelfree.py:lejepa,data=folder:PATH --workdir=DIR      # {train,test}/<class>/*.jpg

The objectives are mae, simmim, ijepa, lejepa, dino, ibot, dinov2, vqkd and beit. vqkd learns a tokenizer from the
features of --config.teacher=REF, such as a run of another objective, and beit from the codes of --config.teacher=DIR, a
run of vqkd. All share a network of 3 layers and width 64 for the digits, and of 6 layers and width 128 for photographs.
kNN, a linear probe and the rank of the features are evaluated during training, the only use of the labels. There is no
published number for this setting.
"""

import ml_collections

from configs import common
from configs.arguments import parse

VIEWS = ("dino", "ibot", "dinov2", "lejepa")
MASKED = ("simmim", "beit", "ibot", "dinov2")
TYPES = {
    "mae": "mae.Mae", "simmim": "simmim.Simmim", "ijepa": "ijepa.Ijepa", "lejepa": "lejepa.Lejepa", "dino": "dino.Dino",
    "ibot": "ibot.Ibot", "dinov2": "dinov2.DinoV2", "vqkd": "vqkd.VqKd", "beit": "beit.Beit",
}  # fmt: skip


def get_config(arg: str = "mae") -> ml_collections.ConfigDict:
    """`arg` is OBJECTIVE[,data=digits|folder:PATH]."""
    objective, _, rest = arg.partition(",")
    options = parse(rest, data="digits")
    if objective not in TYPES:
        raise ValueError(f"found the objective {objective!r}, expected one of {', '.join(TYPES)}")
    kind, _, place = options["data"].partition(":")
    if (kind == "folder") != bool(place) or kind not in ("digits", "folder"):
        raise ValueError(f"found the data {options['data']!r}, expected digits or folder:PATH")
    small = kind == "digits"
    source = {"type": "digits.Digits"} if small else {"type": "folder.Folder", "path": place}
    size = 16 if small else 32

    config = common.get_config()
    config.steps = 1500 if small else 4000
    config.batch_size = 128
    config.model = {
        "type": "vit.ViT", "width": 64 if small else 128, "depth": 3 if small else 6, "mlp_dim": 128 if small else 256,
        "num_heads": 4, "patch_size": 4, "pool": "tok" if objective in VIEWS else "gap", "posemb": "sincos2d",
        "mask_token": objective in MASKED,
    }  # fmt: skip
    config.task = {"type": TYPES[objective], "mean": 0.5, "std": 0.5} | task_of(objective, small)
    config.data.source = source | {"split": "train"}
    config.data.preprocess = preprocess_of(objective, small, size)
    config.data.threads = 2
    config.optim.rule.b2 = 0.95
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 3.0
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.checkpoint.every = 500
    test, train = source | {"split": "test"}, source | {"split": "train"}
    measured = {"source": test, "train": train, "preprocess": f"resize({size})", "batch_size": 500}
    every = config.steps // 4
    config.evals.knn = {"type": "knn.Knn", "every": every, **measured}
    config.evals.probe = {"type": "probe.LinearProbe", "strengths": (0.01, 0.1), "max_iter": 200, **measured}
    config.evals.collapse = {
        "type": "collapse.Collapse", "every": every, "source": test, "preprocess": f"resize({size})", "batch_size": 500,
    }  # fmt: skip
    return config


def task_of(objective: str, small: bool) -> dict:
    """Return the settings of an objective for small images."""
    heads = {"hidden": 256, "bottleneck": 64, "outputs": 256 if small else 1024, "momentum": 0.99}
    decoder = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
    return {
        "mae": decoder,
        "simmim": {"unit": 1},
        "ijepa": {"predictor_width": 64, "predictor_depth": 2, "predictor_heads": 4, "momentum": 0.99},
        "lejepa": {"hidden": 256, "outputs": 32},
        "dino": heads,
        "ibot": heads,
        "dinov2": heads | {"patch_outputs": heads["outputs"]},
        "vqkd": decoder | {"teacher_width": 64 if small else 128, "codes": 64 if small else 256, "code_width": 16},
        "beit": {"smallest_block": 2 if small else 4, "codes": 64 if small else 256},
    }[objective]


def preprocess_of(objective: str, small: bool, size: int) -> str:
    """Return the preprocess spec of an objective."""
    if objective not in VIEWS:
        return f"resize({size})|pad_crop(16, 1)" if small else f"random_resized_crop({size}, 0.2)|flip"
    colours = "" if small else "|flip|maybe(0.8, 'color_jitter(0.4, 0.4, 0.2, 0.1)')|grayscale(0.2)"
    turned = "rotate(15.0)|" if small else ""
    view = f"{turned}random_resized_crop({size}, 0.5){colours}"
    crop = f"{turned}random_resized_crop({size // 2}, 0.2, 0.5){colours}"
    return f"views(2, 2, view={view!r}, crop={crop!r})"
