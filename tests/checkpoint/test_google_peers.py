"""Compare with the networks and loaders of google-research/vision_transformer and big_vision.

These tests run if VIT_ORIGINAL and BIG_VISION are folders of checkouts, in another process since one of them is also called
vit_jax.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint.test_google import GAP, HYBRID, MAP, MIXER, REP, VIT, logits, random_images, random_params
from vit_jax.pretrained import google
from vit_jax.pretrained.tensors import read_arrays

TRANSFORMER = {"num_layers": 2, "mlp_dim": 48, "num_heads": 4, "dropout_rate": 0.0, "attention_dropout_rate": 0.0}
ORIGINAL = {"num_classes": 7, "hidden_size": 32, "patches": {"size": (8, 8)}, "transformer": TRANSFORMER}
RESNET = {"patches": {"size": (1, 1)}, "resnet": {"num_layers": (2, 1), "width_factor": 0.5}}
BIG = {"num_classes": 7, "width": 32, "depth": 2, "mlp_dim": 48, "num_heads": 4, "patch_size": (8, 8)}
MIXERS = {"num_classes": 7, "num_blocks": 2, "hidden_dim": 32, "tokens_mlp_dim": 24, "channels_mlp_dim": 48}
VITS, MIXING, BIG_VIT, BIG_MIXING = (
    *("vit_jax.models_vit VisionTransformer", "vit_jax.models_mixer MlpMixer"),
    *("big_vision.models.vit Model", "big_vision.models.mlp_mixer Model"),
)
# name: our spec, their class, its arguments, and the branch of their file
CASES: dict[str, tuple[dict, str, dict, str]] = {
    "tok and rep": (REP, VITS, ORIGINAL | {"representation_size": 20}, ""),
    "gap": (GAP, VITS, ORIGINAL | {"classifier": "gap"}, ""),
    "hybrid": (HYBRID, VITS, ORIGINAL | RESNET, ""),
    "mixer": (MIXER, MIXING, MIXERS | {"patches": {"size": (8, 8)}}, ""),
    "bv tok": (VIT, BIG_VIT, BIG | {"pool_type": "tok"}, "params/"),
    "bv tok scanned": (VIT, BIG_VIT, BIG | {"pool_type": "tok", "scan": True}, "opt/target/"),
    "bv gap": (GAP, BIG_VIT, BIG | {"pool_type": "gap"}, "opt/target/"),
    "bv gap scanned": (GAP, BIG_VIT, BIG | {"pool_type": "gap", "scan": True}, "params/"),
    "bv gap and rep": (GAP | {"rep_size": 20}, BIG_VIT, BIG | {"pool_type": "gap", "rep_size": 20}, ""),
    "bv map": (MAP, BIG_VIT, BIG | {"pool_type": "map"}, "params/"),
    "bv map scanned": (MAP, BIG_VIT, BIG | {"pool_type": "map", "scan": True}, "params/img/"),
    "bv mixer": (MIXER, BIG_MIXING, MIXERS | {"patch_size": (8, 8)}, "params/"),
}
PEERS = {"original": "VIT_ORIGINAL", "big_vision": "BIG_VISION"}


def peer_of(name: str) -> str:
    return "big_vision" if name.startswith("bv ") else "original"


@pytest.fixture(scope="module", params=PEERS)
def results(request, tmp_path_factory) -> tuple[str, Path]:
    """A peer and the folder of its results, with one folder per case."""
    checkout = os.environ.get(PEERS[request.param])
    if not checkout:
        pytest.skip(f"{PEERS[request.param]} is not set to a checkout of {request.param}")
    root, cases = tmp_path_factory.mktemp(request.param), []
    for name, (spec, target, kwargs, prefix) in CASES.items():
        if peer_of(name) == request.param:
            (root / name).mkdir()
            np.save(root / name / "images.npy", random_images())
            google.write(root / name / "ours.npz", spec, random_params(spec), None, None)
            module, cls = target.split()
            case = {"name": name, "peer": request.param, "module": module, "class": cls, "kwargs": kwargs}
            cases.append(case | {"prefix": prefix})
    (root / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("google_peer.py")
    environment = os.environ | {"PYTHONPATH": checkout}
    done = subprocess.run([sys.executable, script, root], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, root


def test_their_loader_gives_the_same_logits(results):
    peer, root = results
    for name in filter(lambda name: peer_of(name) == peer, CASES):
        spec = CASES[name][0]
        expected = logits(spec, random_params(spec), random_images())
        found = np.load(root / name / "ours.npy")
        print(f"{name}: {np.abs(found - expected).max():.1e} of {expected.std():.1e}")
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=name)


def test_their_files_give_the_same_logits(results):
    peer, root = results
    for name in filter(lambda name: peer_of(name) == peer, CASES):
        arrays, config, _ = read_arrays(root / name / "theirs.npz")
        read = google.read(arrays, config, name)
        expected = np.load(root / name / "theirs.npy")
        found = logits(read.model, read.params, random_images())
        print(f"{name}: {np.abs(found - expected).max():.1e} of {expected.std():.1e}")
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=name)
