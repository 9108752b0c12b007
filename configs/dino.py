"""Pretrain by self-distillation without labels, at laptop scale (DINO, arXiv:2104.14294).

    python -m vit_jax.main --config=configs/dino.py --workdir=DIR                    # scikit-learn's digits
    python -m vit_jax.main --config=configs/dino.py:folder:PATH --workdir=DIR        # CIFAR-10 as {train,test}/<class>/*.jpg

Each image gives two large views and two small crops; kNN and a linear probe evaluate the features of the teacher, and
of the student as knn_student and probe_student. A teacher entropy near log(outputs) or 0 means that the features
collapse. The README has our numbers; there is no published number for this setting.
"""

import ml_collections

from configs import common

COLOURS = "maybe(0.8, 'color_jitter(0.4, 0.4, 0.2, 0.1)')|grayscale(0.2)"


def get_config(data: str = "digits") -> ml_collections.ConfigDict:
    """`data` is "digits", or "folder:PATH" with train and test folders of class folders of 32 px images."""
    kind, _, place = data.partition(":")
    if (kind == "folder") != bool(place) or kind not in ("digits", "folder"):
        raise ValueError(f"found the data {data!r}, expected digits or folder:PATH")
    small = kind == "digits"
    source = {"type": "digits.Digits"} if small else {"type": "folder.Folder", "path": place}
    if small:
        resize, views = (
            "resize(16)",
            ("rotate(15.0)|random_resized_crop(16, 0.5)", "rotate(15.0)|random_resized_crop(8, 0.3, 0.6)"),
        )
    else:
        resize = "resize(32)"
        views = (f"random_resized_crop(32, 0.4)|flip|{COLOURS}", f"random_resized_crop(16, 0.1, 0.4)|flip|{COLOURS}")

    config = common.get_config()
    config.steps = 1500 if small else 3000
    config.batch_size = 64 if small else 128
    config.model = {
        "type": "vit.ViT", "width": 64 if small else 128, "depth": 3 if small else 6, "mlp_dim": 128 if small else 256,
        "num_heads": 4, "patch_size": 4, "pool": "gap" if small else "tok", "posemb": "sincos2d",
        "drop_path": 0.0 if small else 0.1,
    }  # fmt: skip
    config.task = {
        "type": "dino.Dino", "outputs": 64 if small else 1024, "hidden": 256, "bottleneck": 64, "momentum": 0.99,
        "teacher_temperature": (0.04, 0.04) if small else (0.04, 0.07), "mean": 0.5, "std": 0.5,
    }  # fmt: skip
    config.data.source = source | {"split": "train"}
    config.data.preprocess = f"views(2, 2, view={views[0]!r}, crop={views[1]!r})"
    config.data.threads = 2
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.04
    config.optim.clip_norm = 3.0
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.checkpoint.every = 500
    test, train = source | {"split": "test"}, source | {"split": "train"}
    measured = {"source": test, "train": train, "preprocess": resize, "batch_size": 500}
    config.evals.knn = {"type": "knn.Knn", "every": config.steps // 4, **measured}
    config.evals.probe = {"type": "probe.LinearProbe", "strengths": (0.01, 0.1), "max_iter": 200, **measured}
    return config
