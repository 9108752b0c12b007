"""Model references and what is reported about them."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.peers import timm, torch
from vit_jax import inference, trees
from vit_jax.__main__ import main as vit
from vit_jax.checkpoint import workdir
from vit_jax.config import factory as config
from vit_jax.pretrained import imagenet, reference
from vit_jax.types import UserError

SPEC = {"type": "vit.ViT", "width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 4, "mlp": "gelu"}
NAMES = ("blue", "red")


def write(path: Path, *, names_known: bool = True, trained_head: bool = True) -> Path:
    """Write a workdir of a small ViT with random parameters."""
    task = config.build({"type": "classify.Classify"}, "task", model=config.build(SPEC | {"num_classes": 2}, "model"))
    shapes = trees.flatten(
        jax.eval_shape(lambda: task.init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")}))
    )
    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.2, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    if not trained_head:
        params["head/kernel"] = np.zeros_like(params["head/kernel"])
    data = {"class_names": NAMES if names_known else ("0", "1"), "names_known": names_known}
    data |= {"image_shape": (8, 8, 3), "num_examples": 0, "preprocess": "resize(8)"}
    workdir.write_model(
        path, {"model": SPEC, "task": {"type": "classify.Classify"}, "data": {}, "evals": {}}, data, params
    )
    return path


@pytest.fixture
def photos(tmp_path):
    """Two images of each class."""
    for name in NAMES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_may_be_named_like_one_with_a_step(tmp_path):
    other = write(tmp_path / "other")
    assert inference.load(write(tmp_path / "run@3")).class_names == NAMES
    assert inference.load(f"{tmp_path / 'run@3'}@0:raw").class_names == NAMES
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        inference.load(f"{other}@3:raw")


def test_the_home_of_an_unknown_user_is_reported(capsys):
    assert vit(["predict", "--model=~nobody-here/run", __file__]) == 2
    assert "No model at" in capsys.readouterr().err


def test_a_run_that_contains_a_converted_model_stays_a_run(tmp_path, capsys):
    run = write(tmp_path / "run")
    assert vit(["convert", f"--model={run}", f"--out={run / 'model.npz'}", "--to=npz"]) == 0
    assert inference.load(run).class_names == NAMES


def test_a_path_that_cannot_be_written_is_reported(tmp_path, capsys):
    run = write(tmp_path / "run")
    (tmp_path / "file").touch()
    for to in ("workdir", "npz", "timm", "hf"):
        for out in (tmp_path / "file" / "x.npz", tmp_path / ("x" * 300 + ".npz")):
            assert vit(["convert", f"--model={run}", f"--out={out}", f"--to={to}"]) == 2
            assert re.search("cannot be written|longer than a path can be", capsys.readouterr().err)


def test_features_are_compared_if_the_head_is_untrained(tmp_path, capsys):
    run = write(tmp_path / "run", trained_head=False)
    assert vit(["convert", f"--model={run}", f"--out={tmp_path / 'timm'}", "--to=timm"]) == 0
    assert "OK: vit_jax gives the same features (max difference " in capsys.readouterr().out


def test_a_copy_that_the_other_library_cannot_load_fails(tmp_path, capsys, monkeypatch):
    def mismatch(*_, **__):
        raise RuntimeError("Error(s) in loading state_dict")

    run = write(tmp_path / "run")
    monkeypatch.setattr(timm, "create_model", mismatch)
    assert vit(["convert", f"--model={run}", f"--out={tmp_path / 'timm'}", "--to=timm"]) == 1
    assert "timm cannot load it: RuntimeError: Error(s) in loading state_dict" in capsys.readouterr().out


def test_classes_of_a_model_without_names_are_matched_in_order(tmp_path, photos, capsys):
    named, unnamed = write(tmp_path / "named"), write(tmp_path / "unnamed", names_known=False)
    results = []
    for model in (named, unnamed):
        assert vit(["evaluate", f"--model={model}", f"--data=folder:{photos}", "--json"]) == 0
        captured = capsys.readouterr()
        results.append({key: value for key, value in json.loads(captured.out).items() if key != "model"})
    assert results[0] == results[1]
    assert "does not name its classes" in captured.err


def test_assumptions_about_a_model_are_printed_with_its_predictions(tmp_path, photos, capsys):
    assert vit(["convert", f"--model={write(tmp_path / 'run')}", f"--out={tmp_path / 'm.npz'}", "--to=npz"]) == 0
    for command in (["predict", str(photos)], ["evaluate", f"--data=folder:{photos}"]):
        assert vit([*command, f"--model={tmp_path / 'm.npz'}"]) == 0
        assert "assumed GELU's tanh approximation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("local-dir:somewhere/out", "somewhere/out"),
        ("hf-hub:timm/vit_base_patch16_224.augreg_in21k", "hf:timm/vit_base_patch16_224.augreg_in21k"),
        ("hf_hub:google/vit-base-patch16-224", "hf:google/vit-base-patch16-224"),
        ("https://huggingface.co/google/vit-base-patch16-224", "hf:google/vit-base-patch16-224"),
        ("https://huggingface.co/google/vit-base-patch16-224/tree/main", "hf:google/vit-base-patch16-224@main"),
        ("vit_base_patch16_224.augreg_in21k", "hf:timm/vit_base_patch16_224.augreg_in21k"),
        ("vit_base_patch16_224.npz", "vit_base_patch16_224.npz"),
        ("ViT-B_16", "ViT-B_16"),
        ("runs/a@3:raw", "runs/a@3:raw"),
    ],
)
def test_references_of_other_libraries_get_what_they_mean(given, meant):
    assert reference.as_ours(given) == meant


HINTS = [
    ("B16", "did you mean the published ViT-B_16 or the size B/16 with random weights?"),
    ("vit-b-16", "the published ViT-B_16 or the size B/16"),
    ("ViT-L/32", "the published ViT-L_32 or the size L/32"),
    ("R50+ViT-B/16", "the published R50+ViT-B_16 or the size R50+B/16"),
    ("S16", "did you mean the size S/16 with random weights?"),
    ("vit_base_patch16_224", "hf:timm/vit_base_patch16_224.orig_in21k or"),
    ("vit_base_patch14_518", "hf:timm/vit_base_patch14_518.TAG"),
    ("google/vit-base-patch16-224", "did you mean hf:google/vit-base-patch16-224 on the hub?"),
]


@pytest.mark.parametrize(("given", "hint"), HINTS)
def test_a_near_reference_gets_a_hint(given, hint, photos):
    with pytest.raises(UserError, match=re.escape(hint)):
        inference.load(given)


@pytest.mark.parametrize("command", ["predict", "evaluate", "convert"])
def test_every_command_gives_the_hint(command, photos, tmp_path, capsys):
    arguments = {
        "predict": ["predict", "--model=B16", str(photos)],
        "evaluate": ["evaluate", "--model=B16", "--data=digits"],
        "convert": ["convert", "--model=B16", "--to=hf", f"--out={tmp_path / 'out'}"],
    }
    assert vit(arguments[command]) == 2
    assert "did you mean the published ViT-B_16" in capsys.readouterr().err


def test_local_dir_is_the_folder_that_timm_reads(tmp_path):
    write(tmp_path / "run")
    assert inference.load(f"local-dir:{tmp_path / 'run'}").class_names == NAMES
    assert inference.load(f"local-dir:{tmp_path / 'run'}@0:raw").class_names == NAMES


@pytest.mark.parametrize("classes", [1000, 10450, 11221, 11821, 21841, 21843])
def test_the_names_of_imagenet_are_those_of_timm(classes):
    info = Path(timm.data.__file__).parent / "_info"
    if classes == 10450:
        synsets = (info / "imagenet21k_miil_w21_synsets.txt").read_text().split()
        words = dict(line.split("\t") for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines())
        theirs = [words[wnid] for wnid in synsets]
    else:
        theirs = timm.data.ImageNetInfo(timm.data.infer_imagenet_subset({"num_classes": classes})).label_descriptions()
    ours = imagenet.class_names(classes)
    assert len(set(ours)) == len(ours) == classes
    assert [re.sub(r" \(n\d{8}\)$", "", name) for name in ours] == theirs


def test_a_model_that_does_not_name_its_1000_classes_shows_those_of_imagenet(tmp_path, photos, capsys):
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=1000
    )
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = inference.load(tmp_path / "a.pth")
    assert loaded.class_names[0] == "tench, Tinca tinca"
    assert loaded.class_names[134] == "crane (n02012849)"
    assert not loaded.names_known
    assert "ImageNet's names" in loaded.notes[-1]
    assert vit(["predict", f"--model={tmp_path / 'a.pth'}", str(photos)]) == 0
    printed = capsys.readouterr().out
    assert any(name.partition(",")[0] in printed for name in loaded.class_names)
