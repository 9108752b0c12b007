"""The commands explain and summary: what they write and print, and mistakes that they name before any compile."""

import html
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.explain.helpers import images
from vit_jax.__main__ import main
from vit_jax.cli.explain import short_names
from vit_jax.explain.pictures import ids_of, unique_names
from vit_jax.types import UserError

RUN = str(Path(__file__).parents[1] / "workdirs" / "plain")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two images with hostile names, and one that is broken."""
    for index, name in enumerate(("$x^{.png", "<img src=x onerror=alert(1)>.png")):
        Image.fromarray(images(2)[index]).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no")
    return tmp_path


def test_two_models_are_explained_side_by_side_on_a_self_contained_page(photos, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [f"--model={RUN}", f"--model={RUN}", str(photos), f"--out={out}", "--method=rollout,gradcam", "--class=3"]
    assert main(["explain", *argv, "--method.layer=-1", "--faithfulness"]) == 1  # one image is broken
    found = capsys.readouterr()
    assert "unreadable, left out" in found.err
    assert "insertion" in found.out
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert html.escape("<img src=x onerror=alert(1)>.png") in page
    assert "<img src=x" not in page
    assert set(json.loads((out / "faithfulness.json").read_text())) == {
        f"{m}_{i}" for m in ("rollout", "gradcam") for i in (1, 2)
    }
    with np.load(out / "gradcam_1.npz", allow_pickle=False) as arrays:
        assert arrays["map"].shape[0] == 2
        assert arrays["target"].tolist() == [3, 3]
        assert arrays["names"].dtype.kind == "U"


def test_every_method_with_a_meaning_draws_and_the_others_say_why_not(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["explain", f"--model={RUN}", str(photos / "$x^{.png"), f"--out={out}", "--data=folder:/nowhere"]) == 0
    assert "without neighbours: Found no readable folder at '/nowhere'" in capsys.readouterr().err
    drawn = {path.name.removesuffix("_1.png") for path in out.glob("*_1.png")}
    assert drawn == {path.stem for path in out.glob("*.npz")} == set(short_names()) - {"neighbours"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--method=rolout"], "did you mean rollout?"),
        (["--method=rollout", "--method.layer=1"], "--method.layer: unknown key"),
        (["--method=gradcam", "--method.layer=99"], "--method.layer=99"),
        (["--method=similarity", "--method.point=2,0"], "--method.point=(2"),
        (["--method=occlusion", "--method.size=0"], "1 <= stride <= size"),
        (["--method=occlusion", "--method.size=9999"], "--method.size=9999"),
        (["--class=zebra"], "--class='zebra' is not one of the 10 classes"),
        (["--max_images=0"], "--max_images: found '0'"),
        (["--data=digit", "--method=neighbours"], "Found the data 'digit'"),
    ],
)
def test_a_mistake_is_one_message_before_any_compile(argv, says, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("compiled"))
    assert main(["explain", f"--model={RUN}", str(photos), f"--out={tmp_path / 'out'}", *argv]) == 2
    found = capsys.readouterr().err
    assert says in found
    assert found.count("error:") == 1


def test_images_that_cannot_be_read_are_a_mistake(photos, tmp_path, capsys):
    argv = [f"--model={RUN}", str(photos / "broken.png"), f"--out={tmp_path / 'out'}"]
    assert main(["explain", *argv]) == 2
    assert "None of the 1 images can be read" in capsys.readouterr().err
    assert main(["explain", *argv[:2], f"--out={photos / 'broken.png'}"]) == 2
    assert "no folder that can be written" in capsys.readouterr().err


def test_the_rows_of_a_summary_add_up_to_the_whole(capsys):
    assert main(["summary", f"--model={RUN}", "--json", "--batch_size=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    *rows, total = found["layers"]
    for key in ("params", "bytes", "flops"):
        assert sum(row[key] for row in rows) == pytest.approx(total[key])
    from vit_jax import flops, inference

    loaded = inference.load(RUN)
    assert total["params"] == sum(x.size for x in loaded.arrays.values())
    batch = jax.ShapeDtypeStruct((2, *loaded.image_shape), "float32")
    assert total["flops"] == flops.count(loaded.model.apply, loaded.weights, batch)[0]
    assert found["memory"]["memory of the parameters"] == 4 * total["params"]


@pytest.mark.parametrize("argv", [[], [f"--model={RUN}", "--config=x.py"], [f"--model={RUN}", "--config.steps=1"]])
def test_a_summary_is_of_a_model_or_of_a_config(argv, capsys):
    assert main(["summary", *argv]) == 2
    assert "error:" in capsys.readouterr().err


def test_no_file_is_named_like_another():
    assert unique_names(["x/a-2.png", "a.jpg", "y/a.png", "z/a.gif"]) == ["a-2", "a", "a-3", "a-4"]


def test_images_of_one_name_have_ids_of_their_own(tmp_path):
    paths = ["x/7.png", "y/7.png"]
    assert ids_of(None, paths, ("cat",)) == ({"x/7.png": 7, "y/7.png": "7-2"}, [1])
    image, category = {"file_name": "7.png", "id": 3, "width": 8, "height": 8}, {"id": 1, "name": "cat"}
    (tmp_path / "coco.json").write_text(json.dumps({"images": [image], "categories": [category], "annotations": []}))
    with pytest.raises(UserError, match="several of yours have one name"):
        ids_of(str(tmp_path / "coco.json"), paths, ("cat",))
