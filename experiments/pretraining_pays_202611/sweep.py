"""Three classes of CIFAR-10, 50 images each, from scratch and after pretraining on the other seven; three draws of them."""

from vit_jax.runs.sweeps.space import Sweep, chain, product, zipped

LENGTH = {"steps": 200, "batch_size": 50, "optim.schedule.warmup_steps": 20}
SCRATCH = product({"optim.lr": [1e-3, 3e-3]})
TUNED = product({"optim.lr": [3e-4, 1e-3], "init": [{"ref": "workdirs/seven"}]})


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is the folder that prepare.py made."""
    if not arg:
        raise ValueError("found no argument, expected the folder that prepare.py made")
    draws = zipped(
        {"config": [f"configs/cifar10.py:folder:{arg}/three_{seed}" for seed in range(3)], "seed": [0, 1, 2]}
    )
    runs = product([LENGTH], chain(SCRATCH, TUNED), draws)
    return Sweep(config=f"configs/cifar10.py:folder:{arg}/three_0", runs=runs, metric="test/accuracy")
