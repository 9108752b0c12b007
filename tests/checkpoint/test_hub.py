"""Downloads, from a server on loopback that speaks the hub's and the bucket's protocols."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.hub_server import serving
from vit_jax.pretrained import hub, names, reference
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
    with serving({"some/vit": model}, bucket=model) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.address)
        template = f"{running.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("VIT_JAX_BUCKETS", f"{running.address}/bucket")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


def test_a_model_of_the_hub_is_its_folder_without_what_is_not_needed(server, model):
    folder = hub.from_hub("some/vit")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_model_in_the_cache_is_used_without_the_network(server, monkeypatch):
    folder = hub.from_hub("some/vit")
    server.server_close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.from_hub("some/vit") == folder


def test_without_the_network_or_the_cache_the_remedies_are_told(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not in the cache and HF_HUB_OFFLINE is set.*mirror"):
        hub.from_hub("some/vit")


def test_a_damaged_download_is_removed_from_the_cache(server, tmp_path):
    server.corrupt = True
    with pytest.raises(UserError, match="removed from the cache"):
        hub.from_hub("some/vit")
    server.corrupt = False
    folder = hub.from_hub("some/vit")
    assert len(safetensors.numpy.load_file(folder / "model.safetensors")["x"]) == 5000


@pytest.mark.parametrize(
    ("name", "says"),
    [("some/other", "is not on the hub"), ("some/vit@v9", "no revision 'v9'"), ("some", "expected hf:OWNER/NAME")],
)
def test_what_the_hub_does_not_have_is_told(name, says, server):
    with pytest.raises(UserError, match=says):
        hub.from_hub(name)


def test_a_download_from_the_bucket_goes_on_where_it_stopped(server, model):
    server.cut = 1000
    with pytest.raises(UserError, match=r"broke off .*goes on where it stopped"):
        hub.from_bucket("model.safetensors")
    server.asked.clear()
    file = hub.from_bucket("model.safetensors")
    assert server.asked == ["GET /bucket/model.safetensors bytes=1000-"]
    assert file.read_bytes() == (model / "model.safetensors").read_bytes()
    server.asked.clear()
    assert hub.from_bucket("model.safetensors") == file
    assert not server.asked


def test_a_damaged_file_of_the_bucket_is_not_kept(server, tmp_path):
    server.corrupt = True
    with pytest.raises(UserError, match="MD5"):
        hub.from_bucket("model.safetensors")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_name_of_the_original_is_looked_for_in_the_folder_first_and_then_at_its_places(
    server, model, tmp_path, monkeypatch
):
    places = names.places("ViT-B_16")
    assert places
    assert places[0].startswith("hf:")
    server.models[places[0].removeprefix("hf:")] = model
    assert reference.locate("ViT-B_16") == hub.from_hub(places[0].removeprefix("hf:"))
    shutil.copy(model / "model.safetensors", tmp_path / "ViT-B_16.npz")
    monkeypatch.setenv("VIT_JAX_MODELS", str(tmp_path))
    assert reference.locate("ViT-B_16") == tmp_path / "ViT-B_16.npz"


def test_a_name_found_at_no_place_lists_what_each_answered(server):
    with pytest.raises(UserError, match=r"(?s)at none of its places:.*not on the hub.*404.*VIT_JAX_MODELS"):
        reference.locate("ViT-B_16")
