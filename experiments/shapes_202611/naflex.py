"""One network for several sequence lengths, measured at those and at lengths between them, on CIFAR-10."""

from vit_jax.runs.sweeps.space import Sweep

TRAINED, MEASURED = (16, 36, 64), (16, 25, 36, 49, 64)


def get_sweep(arg: str = "") -> Sweep:
    """`arg` is folder:PATH."""
    kind, _, place = arg.partition(":")
    if kind != "folder" or not place:
        raise ValueError(f"found {arg!r}, expected folder:PATH")
    test = {"type": "folder.Folder", "path": place, "split": "test"}
    evals = {
        f"test_{length}": {
            "type": "classification.Classification", "source": test, "preprocess": f"fit(4, {length})|patchify(4, {length})",
            "batch_size": 250,
        }
        for length in MEASURED
    }  # fmt: skip
    run = {
        "model.width": 128, "model.depth": 4, "model.mlp_dim": 256, "model.num_heads": 4, "model.patch_size": 4,
        "model.posemb_grid": (8, 8), "data.preprocess": f"flip|fit(4, {TRAINED})|patchify(4, 64)",
        "data.eval_preprocess": "resize(32)", "evals": evals, "epochs": None, "steps": 800, "checkpoint.every": 400,
    }  # fmt: skip
    return Sweep(config=f"configs/naflex.py:data={arg}", runs=[run], metric="test_64/accuracy")
