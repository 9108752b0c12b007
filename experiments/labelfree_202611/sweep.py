"""Fine-tuning on 1 % and 10 % of CIFAR-10's labels from MAE, DINO and random weights; three draws of the labels and the order."""

from vit_jax.runs.sweeps.space import Sweep, product, zipped

NETWORK = {
    "type": "vit.ViT", "width": 128, "depth": 6, "mlp_dim": 256, "num_heads": 4, "patch_size": 4, "pool": "gap",
    "posemb": "sincos2d",
}  # fmt: skip
BEGINNINGS = [{"model": NETWORK}, *({"model": {}, "init": {"ref": f"workdirs/{name}"}} for name in ("mae", "dino"))]
LENGTH = {"one": {"steps": 200, "batch_size": 64}, "ten": {"steps": 240, "batch_size": 128}}
RATES = {"one": [1e-3, 3e-3], "ten": [3e-3]}  # 3e-3, the rate of configs/cifar10.py, is the better one with 1 %


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is one:OUT or ten:OUT, with OUT the folder that prepare.py made: 1 or 10 % of the labels."""
    share, _, out = arg.partition(":")
    if share not in LENGTH or not out:
        raise ValueError(f"found {arg!r}, expected one:OUT or ten:OUT, with the folder that prepare.py made")
    draws = zipped(
        {"config": [f"configs/cifar10.py:folder:{out}/{share}_{seed}" for seed in range(3)], "seed": [0, 1, 2]}
    )
    fixed = LENGTH[share] | {
        "task.mean": (0.4914, 0.4822, 0.4465),
        "task.std": (0.2470, 0.2435, 0.2616),
        "checkpoint.every": 300,
        "evals.test.every": 300,
    }
    runs = product([fixed], BEGINNINGS, {"optim.lr": RATES[share]}, draws)
    return Sweep(config=f"configs/cifar10.py:folder:{out}/{share}_0", runs=runs, metric="test/accuracy")
