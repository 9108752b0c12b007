"""Weights as training scripts save them load as the model that was meant, and say which."""

import argparse
import datetime
import pathlib

import numpy as np
import pytest
import safetensors.torch

from tests.checkpoint.test_google import VIT, written
from tests.peers import timm, torch, transformers
from vit_jax.pretrained import reference
from vit_jax.types import UserError


def network(seed):
    torch.manual_seed(seed)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=5
    )
    return {name: torch.randn_like(x) for name, x in model.state_dict().items()}


PLAIN, AVERAGED = network(0), network(1)


def under(prefix, state):
    return {prefix + name: x for name, x in state.items()}


def without_head(state):
    return {name: x for name, x in state.items() if not name.startswith("head.")}


def assert_loads(path, state):
    found = reference.read(str(path))
    np.testing.assert_array_equal(
        found.params["embed/kernel"], state["patch_embed.proj.weight"].numpy().transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(found.params["head/kernel"], state["head.weight"].numpy().T)
    return " ".join(found.notes)


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "encoder.",
    "net.",
    "module._orig_mod.model.",
    "net.1.module.a_b.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_ignored_in_every_format(prefix, tmp_path):
    state = under(prefix, PLAIN)
    torch.save(state, tmp_path / "a.pth")
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: x.numpy() for name, x in state.items()})
    for ending in ("pth", "safetensors", "npz"):
        assert prefix.rstrip(".") in assert_loads(tmp_path / f"a.{ending}", PLAIN)


OPTIMIZER = {
    "state": {0: {"exp_avg": torch.zeros(64, 3, 8, 8), "step": torch.tensor(3.0)}},
    "param_groups": [{"lr": 0.1}],
}
WRAPPERS = ["state_dict", "model_state_dict", "model", "module", "net", "network", "params", "student", "weights"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_weights_in_a_wrapper_are_found(wrapper, prefix, tmp_path):
    torch.save({"epoch": 1, wrapper: under(prefix, PLAIN), "optimizer": OPTIMIZER}, tmp_path / "a.pth")
    notes = assert_loads(tmp_path / "a.pth", PLAIN)
    assert wrapper in notes
    assert "optimizer" not in notes


CASES = {
    "ema": {"model": PLAIN, "ema": AVERAGED},
    "model_ema": {"model": PLAIN, "model_ema": under("module.", AVERAGED)},
    "state_dict_ema": {"state_dict": under("module.", PLAIN), "state_dict_ema": under("module.", AVERAGED)},
    "modelEMA": {"net": PLAIN, "modelEMA": AVERAGED},
    "ema_model": {"state_dict": {**under("model.", PLAIN), **under("ema_model.module.", AVERAGED)}},
    "shadow": {"model": PLAIN, "ema": {"decay": 0.999, "shadow": AVERAGED}},
    "without prefix": {**PLAIN, **under("ema.", AVERAGED)},
    "teacher": {"student": under("module.backbone.", PLAIN), "teacher": under("backbone.", AVERAGED)},
    "swa": {"model": PLAIN, "swa_model": {"n_averaged": torch.tensor(3), **under("module.", AVERAGED)}},
    "nested": {"checkpoint": {"trainer": {"model": PLAIN, "model_ema": AVERAGED}}},
}


@pytest.mark.parametrize("name", CASES)
def test_averaged_weights_are_taken_where_there_are_both(name, tmp_path):
    torch.save(CASES[name], tmp_path / "a.pth")
    assert "The averaged weights under" in assert_loads(tmp_path / "a.pth", AVERAGED)


def test_averaged_weights_are_taken_from_safetensors_too(tmp_path):
    state = {**under("student.", PLAIN), **under("teacher.", AVERAGED)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert "under 'teacher' are used, not those under student" in assert_loads(tmp_path / "a.safetensors", AVERAGED)


def test_a_teacher_of_another_size_is_not_an_average(tmp_path):
    teacher = {name: torch.cat([x, x]) for name, x in AVERAGED.items()}
    torch.save({"teacher": teacher, "model": PLAIN}, tmp_path / "a.pth")
    assert "The weights under 'model' are used, not those under teacher" in assert_loads(tmp_path / "a.pth", PLAIN)


def test_several_models_are_not_chosen_from(tmp_path):
    torch.save({"models": [PLAIN, AVERAGED]}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"several models, under models\.0\., models\.1\."):
        reference.read(str(tmp_path / "a.pth"))


EXTRAS = {
    "mask_token": {"mask_token": torch.zeros(1, 1, 64), "decoder_norm.bias": torch.zeros(3)},
    "decoder_blocks": {
        "decoder_blocks.0.attn.qkv.weight": torch.zeros(9, 3),
        "decoder_pos_embed": torch.zeros(1, 5, 3),
    },
    "decoder": {"decoder.0.weight": torch.zeros(3, 3, 1, 1)},
    "head": {"head.mlp.0.weight": torch.zeros(3, 64), "head.last_layer.weight_g": torch.zeros(3, 1)},
    "blocks": {"blocks.0.total_ops": torch.zeros(1)},
}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("prefix", ["", "module.encoder."])
def test_parts_of_pretraining_are_left_out_and_named(name, prefix, tmp_path):
    torch.save(under(prefix, PLAIN | EXTRAS[name]), tmp_path / "a.pth")
    notes = assert_loads(tmp_path / "a.pth", PLAIN)
    assert f"{name} (" in notes[notes.index("Not loaded: ") :]


def test_an_array_that_may_matter_is_not_left_out(tmp_path):
    torch.save(PLAIN | {"blocks.0.attn.bias_table": torch.zeros(4, 4)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"unexpected: blocks\.0\.attn\.bias_table"):
        reference.read(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("head", ["head", "fc", "classifier"])
def test_a_linear_head_beside_a_backbone_is_its_head(head, tmp_path):
    state = under("module.backbone.", without_head(PLAIN))
    state |= {f"module.{head}.{leaf}": PLAIN[f"head.{leaf}"] for leaf in ("weight", "bias")}
    torch.save({"state_dict": state | {"module.criterion.centre": torch.zeros(5, 5)}}, tmp_path / "a.pth")
    notes = assert_loads(tmp_path / "a.pth", PLAIN)
    assert f"module.{head}.weight" in notes
    assert "Not loaded: state_dict (1 arrays)" in notes


BESIDE = {
    "namespace": argparse.Namespace(
        lr=0.1, output=pathlib.Path("runs"), nested=argparse.Namespace(seed=0), device="cuda"
    ),
    "best": np.float64(81.2),
    "best32": np.float32(81.2),
    "epoch": np.int64(3),
    "flags": np.bool_(True),
    "history": np.arange(3.0),
    "seen": {1, 2},
    "started": datetime.timedelta(hours=3),
    "path": pathlib.PureWindowsPath("C:/runs"),
}


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_scripts_save_beside_weights_is_read_as_data_alone(is_zip, tmp_path):
    parameters = {name: torch.nn.Parameter(x) for name, x in PLAIN.items()}
    for name, value in BESIDE.items():
        saved = {"model": parameters, name: value}
        torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
        assert_loads(tmp_path / "a.pth", PLAIN)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_code_beside_weights_is_refused(tmp_path, capsys):
    torch.save({"model": PLAIN, "args": argparse.Namespace(hook=Harmful())}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"pickled objects \(.*print\)"):
        reference.read(str(tmp_path / "a.pth"))
    assert capsys.readouterr().out == ""


def test_scalars_saved_by_numpy_1_are_read(tmp_path):
    torch.save({"model": PLAIN, "best": np.float64(1)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pth").read_bytes()
    older = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert older != data
    (tmp_path / "a.pth").write_bytes(older)
    assert_loads(tmp_path / "a.pth", PLAIN)


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model."])
def test_names_of_transformers_keep_their_own_prefix(prefix, tmp_path):
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64, image_size=16, patch_size=8
    )
    state = {n: torch.randn_like(x) for n, x in transformers.ViTForImageClassification(config).state_dict().items()}
    state["vit.embeddings.mask_token"] = torch.zeros(1, 1, 64)
    torch.save(under(prefix, state), tmp_path / "a.pth")
    found = reference.read(str(tmp_path / "a.pth"))
    np.testing.assert_array_equal(found.params["head/kernel"], state["classifier.weight"].numpy().T)
    assert "the mask token is left out" in " ".join(found.notes)


NETWORKS = {
    "mixer": lambda: timm.models.mlp_mixer.MlpMixer(
        img_size=16, patch_size=8, num_blocks=1, embed_dim=32, num_classes=5
    ),
    "hybrid": lambda: timm.create_model("vit_tiny_r_s16_p8_224", depth=1, num_classes=5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_mixers_and_hybrids_are_found_in_wrappers_too(name, tmp_path):
    state = NETWORKS[name]().state_dict()
    averaged = {name: x + 1 for name, x in state.items()}
    torch.save({"model": under("module.", state), "model_ema": under("module.", averaged)}, tmp_path / "a.pth")
    found = reference.read(str(tmp_path / "a.pth"))
    np.testing.assert_array_equal(found.params["head/kernel"], averaged["head.weight"].numpy().T)
    assert "The averaged weights under 'model_ema.module' are used" in found.notes[0]


@pytest.mark.parametrize("branch", ["", "params/", "model/params/", "module/"])
def test_branches_of_google_files_are_found(branch, tmp_path):
    arrays = written(tmp_path / "plain.npz", VIT)
    averaged = {name: x + 1 for name, x in arrays.items()}
    np.savez(tmp_path / "a.npz", **{branch + name: x for name, x in arrays.items()})
    found = reference.read(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(found.params["cls"], arrays["cls"])
    if branch:
        beside = {f"ema_{branch}{name}": x for name, x in averaged.items()}
        moments = {f"opt/0/mu/{name}": x for name, x in arrays.items()}
        np.savez(tmp_path / "b.npz", **{branch + name: x for name, x in arrays.items()}, **beside, **moments)
        found = reference.read(str(tmp_path / "b.npz"))
        np.testing.assert_array_equal(found.params["cls"], averaged["cls"])
        assert "The averaged weights under 'ema_" in " ".join(found.notes)
