"""Downloads, from a server on loopback that speaks the hub's protocol."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.hub_server import serving
from tests.peers import timm
from vit_jax.pretrained import hub, reference
from vit_jax.types import UserError


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "readme.md").write_text("words")
    safetensors.numpy.save_file({"x": np.arange(5000, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def server(model, tmp_path, monkeypatch):
    with serving({"some/vit": model}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.address)
        template = f"{running.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


def test_a_model_of_the_hub_is_its_folder_of_configs_and_weights(server, model):
    folder = hub.download("some/vit")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_model_in_the_cache_is_used_without_the_network(server, monkeypatch):
    folder = hub.download("some/vit")
    server.server_close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.download("some/vit") == folder


def test_without_the_network_or_the_cache_the_error_says_what_to_do(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not in the cache and HF_HUB_OFFLINE is set.*mirror"):
        hub.download("some/vit")


def test_a_damaged_download_is_removed_from_the_cache(server):
    server.corrupt = True
    with pytest.raises(UserError, match="removed from the cache"):
        hub.download("some/vit")
    server.corrupt = False
    folder = hub.download("some/vit")
    assert len(safetensors.numpy.load_file(folder / "model.safetensors")["x"]) == 5000


@pytest.mark.parametrize(
    ("name", "says"),
    [("some/other", "is not on the hub"), ("some/vit@v9", "no revision 'v9'"), ("some", "expected hf:OWNER/NAME")],
)
def test_what_the_hub_does_not_have_is_reported(name, says, server):
    with pytest.raises(UserError, match=says):
        hub.download(name)


def test_names_of_the_original_resolve_to_the_hub():
    def places(name):
        model = hub.find(name)
        return model and model.places

    assert places("ViT-B_16") == (
        "hf:timm/vit_base_patch16_224.orig_in21k",
        "hf:google/vit-base-patch16-224-in21k",
    )
    assert places("imagenet21k+imagenet2012/ViT-B_16.npz")[0] == "hf:timm/vit_base_patch16_384.orig_in21k_ft_in1k"
    assert places("Mixer-B_16.npz") == ("hf:timm/mixer_b16_224.goog_in21k",)
    run = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    assert places("augreg/B_16") == places(f"augreg/{run}.npz") == places(run)
    assert places(run) == ("hf:timm/vit_base_patch16_224.augreg_in21k",)
    assert places("B/16") is places("sam/ViT-L_16") is None


def test_the_table_agrees_with_timm():
    known = {name: timm.get_pretrained_cfg(name) for name in timm.list_pretrained(["*vit*", "mixer*"])}
    bucket = "https://storage.googleapis.com/vit_models/"
    theirs = {
        c.url.removeprefix(bucket).removesuffix(".npz"): f"hf:timm/{n}"
        for n, c in known.items()
        if bucket in (c.url or "")
    }
    assert len(theirs) == 37
    assert {name: hub.find(name).places[0] for name in theirs} == theirs
    for model in hub.ORIGINAL.values():
        for name in (place.removeprefix("hf:timm/") for place in model.places if place.startswith("hf:timm/")):
            assert known[name].input_size[-1] == model.resolution


def test_a_name_of_the_original_is_looked_up_in_the_folder_first_and_then_on_the_hub(
    server, model, tmp_path, monkeypatch
):
    place = hub.find("ViT-B_16").places[0].removeprefix("hf:")
    server.models[place] = model
    assert reference.locate("ViT-B_16") == hub.download(place)
    shutil.copy(model / "model.safetensors", tmp_path / "ViT-B_16.npz")
    monkeypatch.setenv("VIT_JAX_MODELS", str(tmp_path))
    assert reference.locate("ViT-B_16") == tmp_path / "ViT-B_16.npz"


def test_a_name_found_nowhere_lists_what_each_place_answered(server):
    with pytest.raises(UserError, match=r"(?s)could not be downloaded:.*not on the hub.*VIT_JAX_MODELS.*ViT-B_16.npz"):
        reference.locate("ViT-B_16")
