"""Pretrain by masked autoencoding without labels, at laptop scale (MAE, arXiv:2111.06377).

    python -m vit_jax.main --config=configs/mae.py --workdir=DIR                     # scikit-learn's digits
    python -m vit_jax.main --config=configs/mae.py:folder:PATH --workdir=DIR         # CIFAR-10 as {train,test}/<class>/*.jpg

During training kNN and a linear probe evaluate the features, the only use of the labels. The README has our numbers;
there is no published number for this setting. The paper's B/16 masks 75 %, decodes with 8 blocks of width 512 and
trains for 1,600 epochs.
"""

import ml_collections

from configs import common


def get_config(data: str = "digits") -> ml_collections.ConfigDict:
    """`data` is "digits", or "folder:PATH" with train and test folders of class folders of 32 px images."""
    kind, _, place = data.partition(":")
    if (kind == "folder") != bool(place) or kind not in ("digits", "folder"):
        raise ValueError(f"found the data {data!r}, expected digits or folder:PATH")
    small = kind == "digits"
    source = {"type": "digits.Digits"} if small else {"type": "folder.Folder", "path": place}
    resize = "resize(16)" if small else "resize(32)"

    config = common.get_config()
    config.steps = 2000 if small else 4000
    config.batch_size = 128
    config.model = {
        "type": "vit.ViT", "width": 64 if small else 128, "depth": 3 if small else 6, "mlp_dim": 128 if small else 256,
        "num_heads": 4, "patch_size": 4, "pool": "gap", "posemb": "sincos2d",
    }  # fmt: skip
    config.task = {"type": "mae.Mae", "mask_ratio": 0.75, "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4}
    config.data.source = source | {"split": "train"}
    config.data.preprocess = f"{resize}|pad_crop(16, 1)" if small else "random_resized_crop(32, 0.2)|flip"
    config.data.threads = 1
    config.optim.rule.b2 = 0.95
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.checkpoint.every = 500
    test, train = source | {"split": "test"}, source | {"split": "train"}
    measured = {"source": test, "train": train, "preprocess": resize, "batch_size": 500}
    config.evals.knn = {"type": "knn.Knn", "every": config.steps // 4, **measured}
    config.evals.probe = {"type": "probe.LinearProbe", "strengths": (0.01, 0.1), "max_iter": 200, **measured}
    return config
