"""An index is its shards: built, killed, resumed, searched and refused."""

import contextlib
import dataclasses
import itertools
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, environment, run
from tests.explain.helpers import network
from vit_jax.__main__ import main as vit
from vit_jax.data.photographs import crops
from vit_jax.search import nearest
from vit_jax.search.build import add_folder
from vit_jax.search.embed import Embedder, cut
from vit_jax.search.index import About, Index, Shard, unit
from vit_jax.search.nearest import Searcher, exact, near_duplicates, write_graph
from vit_jax.types import UserError

NAMES = [f"{'cats' if i % 2 else 'dogs'}/{i:02d}.png" for i in range(11)]


@pytest.fixture(scope="module")
def embedder():
    return Embedder("model", network().loaded, "features")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of eleven photographs and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for name, pixels in zip(NAMES, crops(len(NAMES), (40, 50, 3)), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    (folder / "cats" / "broken.png").write_bytes(b"no picture")
    return folder


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def build(folder, embedder, photos, report=lambda _: None, size=4):
    index = Index.create(folder, embedder.about)
    return index, add_folder(index, embedder, str(photos), listed(photos), report, size)


def of_vectors(folder, vectors, shard=700):
    """An index of any vectors."""
    index = Index.create(folder, About("model", "features", "x", vectors.shape[1], 1))
    for start in range(0, len(vectors), shard):
        part = vectors[start : start + shard]
        index.append(Shard("/nowhere", [f"{start + i}.png" for i in range(len(part))], [""] * len(part), {}, ""), part)
    return index


def clusters(count, length=24, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((40, length))
    return unit(centers[rng.integers(0, 40, count)] + 0.5 * rng.standard_normal((count, length)))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir()) if path.suffix != ".tmp"}


def test_every_readable_image_is_indexed_once(embedder, photos, tmp_path):
    index, failed = build(tmp_path / "index", embedder, photos)
    assert sorted(index.names) == NAMES_SORTED
    assert list(failed) == ["cats/broken.png"]
    expected = unit(embedder.loaded([photos / name for name in index.names])["features"])
    np.testing.assert_allclose(np.concatenate(index.parts), expected, atol=1e-6)
    assert set(index.labels) == {"cats", "dogs"}


NAMES_SORTED = sorted(NAMES)


@pytest.mark.parametrize("leftover", [False, True])
def test_a_build_that_was_killed_resumes_bit_for_bit(leftover, embedder, photos, tmp_path):
    build(tmp_path / "whole", embedder, photos)

    def killed(text):
        if text.startswith("8"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "index", embedder, photos, killed)
    if leftover:  # vectors without their names, and half of a file
        (tmp_path / "index" / "shards" / "000001.json").unlink()
        (tmp_path / "index" / "shards" / "000002.tmp").write_bytes(b"\x93NUMPY")
    assert len(contents(tmp_path / "index")) < len(contents(tmp_path / "whole"))
    build(tmp_path / "index", embedder, photos)
    assert contents(tmp_path / "index") == contents(tmp_path / "whole")


@pytest.mark.torture
def test_a_command_that_is_killed_three_times_ends_with_the_same_bytes(tmp_path):
    run(tmp_path / "run", "--config.steps=2")
    rng, photos = np.random.default_rng(0), tmp_path / "photos"
    for i in range(13_000):  # four shards
        place = photos / str(i % 10) / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(place)

    def build_command(name, seconds=None):
        command = [sys.executable, "-m", "vit_jax", "search", "build", str(photos), f"--model={tmp_path / 'run'}"]
        process = subprocess.Popen([*command, f"--index={tmp_path / name}"], cwd=ROOT, env=environment())
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        process.kill()
        return process.wait()

    start = time.monotonic()
    assert build_command("whole") == 0
    lifetime = time.monotonic() - start
    codes = [build_command("index", share * lifetime) for share in (0.6, 0.6, 0.5)]
    assert -signal.SIGKILL in codes
    assert build_command("index") == 0
    assert contents(tmp_path / "index") == contents(tmp_path / "whole")


def test_only_new_images_are_computed(embedder, photos, tmp_path, monkeypatch):
    index, _ = build(tmp_path / "index", embedder, photos)
    before = contents(tmp_path / "index")
    index = Index.open(tmp_path / "index")
    monkeypatch.setattr(type(embedder.loaded), "preprocess", lambda self, image: pytest.fail(f"{image} is read again"))
    assert add_folder(index, embedder, str(photos), listed(photos), lambda _: None) == {}
    assert contents(tmp_path / "index") == before


def test_exact_search_is_that_of_float64(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK", 300)
    vectors, queries = clusters(2000), clusters(20, seed=1)
    cosines, rows = exact(of_vectors(tmp_path, vectors), queries, 10)
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    expected = np.argsort(-scores, axis=1)[:, :10]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(cosines, np.take_along_axis(scores, expected, 1), atol=1e-6)


def test_the_graph_finds_nearly_all_that_exact_search_finds(tmp_path):
    index, queries = of_vectors(tmp_path, clusters(4000)), clusters(200, seed=1)
    write_graph(index)
    searcher = Searcher(index)
    assert searcher.graph is not None
    cosines, rows = searcher.vectors(queries, 10)
    _, best = exact(index, queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, best, strict=True)]) >= 0.99
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_the_graph_follows_the_shards(tmp_path):
    vectors = clusters(1500)
    write_graph(of_vectors(tmp_path, vectors[:700]))
    index = Index.open(tmp_path)
    index.append(Shard("/nowhere", [f"{i}.png" for i in range(800)], [""] * 800, {}, ""), vectors[700:])
    assert Searcher(index).graph is None  # of fewer vectors, so the search is exact
    write_graph(index)
    assert len(Searcher(index).graph) == 1500
    (tmp_path / "graph.usearch").write_bytes(b"damaged" * 1000)
    assert Searcher(index).graph is None
    assert Searcher(index).images(vectors[3:4], 1)[0].image == 3


def test_filters_leave_the_nearest_of_what_they_keep(embedder, photos, tmp_path):
    index, _ = build(tmp_path / "index", embedder, photos)
    selected = index.selected(None, "cats")
    query = embedder.query(photos / "dogs" / "00.png")
    hits = Searcher(index).images(query, 20, selected)
    assert {index.names[hit.image] for hit in hits} == {name for name in NAMES if name.startswith("cats/")}
    assert [hit.cosine for hit in hits] == sorted([hit.cosine for hit in hits], reverse=True)
    assert index.selected("cats", None).tolist() == selected.tolist()
    with pytest.raises(UserError, match="labels are cats, dogs"):
        index.selected(None, "birds")


def test_a_picture_finds_itself(embedder, photos, tmp_path):
    index, _ = build(tmp_path / "index", embedder, photos)
    for name in NAMES[:3]:
        hit = Searcher(index).images(embedder.query(Image.open(photos / name)), 1)[0]
        assert index.path(hit.image) == photos / name
        assert hit.cosine == pytest.approx(1, abs=1e-5)


def test_a_part_of_a_picture_is_searched_as_a_picture_of_its_own(embedder, photos):
    pixels = np.asarray(Image.open(photos / NAMES[0]))
    part = cut(str(photos / NAMES[0]), (0.2, 0.5, 0.6, 1.0), embedder.loaded)
    np.testing.assert_array_equal(part, pixels[20:40, 10:30])
    np.testing.assert_array_equal(
        embedder.query(photos / NAMES[0], (0.2, 0.5, 0.6, 1.0)), embedder.query(Image.fromarray(part))
    )
    assert cut(pixels, (0.999, 0.999, 1.0, 1.0), embedder.loaded).shape == (1, 1, 3)


def test_an_index_of_patches_finds_the_patch(photos, tmp_path):
    patches = Embedder("model", network().loaded, "tokens")
    index, _ = build(tmp_path / "index", patches, photos)
    assert len(index) == 16 * len(NAMES)
    # The third patch of the second row.
    hits = Searcher(index).images(patches.query(photos / NAMES[4], (0.5, 0.25, 0.75, 0.5)), 3)
    assert (index.names[hits[0].image], hits[0].patch) == (NAMES[4], 6)
    assert len({hit.image for hit in hits}) == 3


def test_near_duplicates_within_and_between(tmp_path):
    vectors = clusters(600)
    vectors[500:501] = unit(vectors[3:4] + 0.01 * vectors[7:8])
    assert [pair[:2] for pair in near_duplicates(of_vectors(tmp_path / "a", vectors), None, 0.999)] == [(3, 500)]
    other = of_vectors(tmp_path / "b", np.concatenate([clusters(50, seed=5), vectors[10:11]]))
    found = list(near_duplicates(Index.open(tmp_path / "a"), other, 0.999))
    assert [pair[:2] for pair in found] == [(10, 50)]


@pytest.mark.parametrize("graph", [False, True])
def test_all_copies_are_near_duplicates(graph, tmp_path):
    vectors = clusters(600)
    vectors[100:140] = vectors[100]
    index = of_vectors(tmp_path / "a", vectors)
    if graph:
        pytest.importorskip("usearch")
        write_graph(index)
    pairs = {pair[:2] for pair in near_duplicates(index, None, 0.9999)}
    assert pairs == set(itertools.combinations(range(100, 140), 2))


def test_too_many_near_duplicates_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "MOST_PAIRS", 1000)
    index = of_vectors(tmp_path / "a", np.ones((200, 4), np.float32) / 2)
    with pytest.raises(UserError, match="More than 1,000 pairs"):
        list(near_duplicates(index, None, 0.98))


def test_as_many_images_are_found_as_there_are(tmp_path):
    index = Index.create(tmp_path / "a", About("model", "tokens", "x", 8, 100))
    vectors = unit(np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32))
    vectors[:100] = vectors[:1]  # the patches of one image are the nearest
    index.append(Shard("/nowhere", ["a.png", "b.png", "c.png"], [""] * 3, {}, ""), vectors)
    assert {hit.image for hit in Searcher(index).images(vectors[:1], 3)} == {0, 1, 2}


def test_a_box_is_found_where_the_preprocessing_put_it():
    loaded = dataclasses.replace(network().loaded, preprocess_spec="resize_small(16)|central_crop(16)")
    patches = Embedder("model", loaded, "tokens")
    picture = np.zeros((40, 120, 3), np.uint8)
    # The crop shows the middle third, so the second of its four columns is from 5/12 to 6/12.
    inside = patches._patches_in((5 / 12, 0.0, 6 / 12, 1.0), picture.shape)
    np.testing.assert_array_equal(inside.reshape(4, 4), [[False, True, False, False]] * 4)
    with pytest.raises(UserError, match="crops this part of the picture off"):
        patches.query(picture, (0.0, 0.0, 0.2, 1.0))


def damage_bytes(folder):
    path = folder / "shards" / "000000.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def damage_names(folder):
    path = folder / "shards" / "000000.json"
    path.write_text(path.read_text().replace('"0.png"', '"../0.png"'))


DAMAGES = {
    "a bit": (damage_bytes, "checksum"),
    "a name that leads out": (damage_names, "below a folder"),
    "half a shard": (lambda f: (f / "shards" / "000000.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'desc"), "damaged"),
    "a pickle": (lambda f: np.save(f / "shards" / "000000.npy", np.array([{}]), allow_pickle=True), "damaged"),
    "no vectors": (lambda f: (f / "shards" / "000000.npy").unlink(), "damaged"),
    "half of its facts": (lambda f: (f / "index.json").write_text('{"version": 1, "mod'), "damaged"),
    "other facts": (lambda f: (f / "index.json").write_text("[]"), "damaged"),
    "another version": (lambda f: (f / "index.json").write_text((f / "index.json").read_text().replace('n": 1', 'n": 9')), "version 9"),
    "no index": (lambda f: (f / "index.json").unlink(), "is no index"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_index_is_named(kind, tmp_path):
    damage, message = DAMAGES[kind]
    of_vectors(tmp_path, clusters(10))
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        Index.open(tmp_path)


@pytest.mark.parametrize("change", ["weights", "preprocessing", "feature"])
def test_the_index_of_another_model_is_refused(change, photos, tmp_path, embedder):
    import dataclasses

    index, _ = build(tmp_path / "index", embedder, photos)
    loaded = embedder.loaded
    if change == "weights":
        params = dict(loaded.weights["params"])
        params["cls"] = params["cls"] + 1e-6
        loaded = dataclasses.replace(loaded, weights={"params": params})
    if change == "preprocessing":
        loaded = dataclasses.replace(loaded, preprocess_spec="resize(16, 'bicubic')")
    index.check(Embedder("the same", embedder.loaded, "features").about)
    with pytest.raises(UserError, match="build another index"):
        index.check(Embedder("other", loaded, "probs" if change == "feature" else "features").about)


def test_two_builds_at_once_are_refused(tmp_path):
    index = of_vectors(tmp_path, clusters(10))
    with index.locked(), pytest.raises(UserError, match="another process"), Index.open(tmp_path).locked():
        pass


def test_the_commands_build_query_and_compare(photos, tmp_path, capsys):
    index, page = tmp_path / "index", tmp_path / "found.html"
    model = "--model=tests/workdirs/plain"
    assert vit(["search", "build", str(photos), model, f"--index={index}", "--graph"]) == 1  # one is broken
    assert "cats/broken.png" in capsys.readouterr().err
    query = ["search", "query", str(photos / NAMES[1]), f"--index={index}", "--json", f"--html={page}", "--k=3"]
    assert vit(query) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert found[0] == {"path": str(photos / NAMES[1]), "label": "cats", "cosine": pytest.approx(1, abs=1e-5)}
    assert len(found) == 3
    text = page.read_text()
    assert len(re.findall(r'src="data:image/jpeg;base64,[^"]{300,}"', text)) == 4
    assert "http" not in text
    Image.open(photos / NAMES[1]).save(tmp_path / "copy.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "copy.png").rename(tmp_path / "other" / "copy.png")
    assert vit(["search", "build", str(tmp_path / "other"), model, f"--index={tmp_path / 'o'}"]) == 0
    capsys.readouterr()
    assert (
        vit(["search", "duplicates", f"--index={index}", f"--other={tmp_path / 'o'}", "--least=0.99999", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[0])["a"] == str(photos / NAMES[1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["find"], "choose from"),
        (["query", "x.png", "--index=nowhere"], "No file or folder at x.png"),
        (["duplicates", "--index=nowhere"], "is no index"),
        (["query", "x.png", "--index=nowhere", "--box=0.5,0,0.2,1"], "left,top,right,bottom"),
        (["build", "nowhere", "--index=new", "--model=S/16"], "No folder at nowhere"),
    ],
)
def test_mistakes_get_one_message(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vit(["search", *flags]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
