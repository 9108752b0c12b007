"""Run models of google-research/vision_transformer or big_vision, on PYTHONPATH, for test_google_peers.py.

python google_peer.py FOLDER: for each case of FOLDER/cases.json, load CASE/ours.npz by their loader, save a model of theirs
as CASE/theirs.npz, and save the logits of both for CASE/images.npy.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import flax.training.checkpoints  # before the stubs, since it imports the real tensorflow
import jax
import numpy as np


def stub(name: str, **attributes) -> None:
    """Replace a module by a stub if it is not installed; their networks do not need it."""
    try:
        importlib.import_module(name)
    except ImportError:
        parent, _, child = name.rpartition(".")
        sys.modules[name] = types.SimpleNamespace(**attributes)
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])


stub("tensorflow", Tensor=(), Variable=())  # einops checks for these types
stub("tensorflow.io")
stub("tensorflow.io.gfile", GFile=open)
sys.modules["tensorflow.io"].gfile = sys.modules["tensorflow.io.gfile"]
stub("pandas")
stub("tqdm")


def original(case: dict, init, path: str):
    import ml_collections

    from vit_jax import checkpoint

    params = checkpoint.inspect_params(params=checkpoint.load(path), expected=init)
    config = ml_collections.ConfigDict(case["kwargs"])
    tuned = checkpoint.load_pretrained(pretrained_path=path, init_params=init, model_config=config)
    body = {name: leaf for name, leaf in flax.core.unfreeze(tuned).items() if name != "head"}
    jax.tree.map(np.testing.assert_array_equal, body, {name: params[name] for name in body})
    return params


def big_vision(case: dict, init, path: str):
    module = importlib.import_module(case["module"])
    return module.load(init, path, case["kwargs"])


def build(case: dict):
    module = importlib.import_module(case["module"])
    make = getattr(module, case["class"])
    if case["peer"] == "big_vision":
        return make(**case["kwargs"])
    import ml_collections

    return make(**ml_collections.ConfigDict(case["kwargs"]))


def forward(model, params, images, peer: str) -> np.ndarray:
    out = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)
    return np.asarray(out[0] if peer == "big_vision" else out)


def run(case: dict, folder: Path) -> None:
    images = np.load(folder / "images.npy")
    model = build(case)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    shapes = flax.traverse_util.flatten_dict(flax.core.unfreeze(shapes), sep="/")
    rng = np.random.default_rng(1)
    names = {n: rng.normal(n.endswith("scale"), 0.2, x.shape).astype(np.float32) for n, x in shapes.items()}
    params = flax.traverse_util.unflatten_dict(names, sep="/")
    reader = {"original": original, "big_vision": big_vision}[case["peer"]]
    loaded = reader(case, params, f"{folder}/ours.npz")
    np.save(folder / "ours.npy", forward(model, loaded, images, case["peer"]))
    np.savez(folder / "theirs.npz", **{case["prefix"] + name: leaf for name, leaf in names.items()})
    np.save(folder / "theirs.npy", forward(model, params, images, case["peer"]))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    root = Path(sys.argv[1])
    for case in json.loads((root / "cases.json").read_text()):
        run(case, root / case["name"])
