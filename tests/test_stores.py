"""Workdirs, models and data on gs:// and s3://, against a server on loopback."""

import io
import json
import os
import signal
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY_FLAGS, start
from tests.store_server import BUCKET, KEY_ID, SECRET, serving
from tests.test_multiprocess import MODEL, outputs, together
from vit_jax import __main__ as commands
from vit_jax import inference, main, stores
from vit_jax.checkpoint import remote
from vit_jax.checkpoint.saver import steps_in
from vit_jax.data.open import open_source
from vit_jax.data.pipeline import TrainData
from vit_jax.data.source import UnreadableImage
from vit_jax.types import UserError

pytest.importorskip("s3fs")
SCHEMES = ("s3", "gs")
FLAGS = ("--config.steps=20", "--config.checkpoint.every=5", "--config.evals.test.every=10")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield server


@pytest.fixture(params=SCHEMES)
def place(request, server):
    server.objects.clear()
    return f"{request.param}://{BUCKET}/some/where"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Return the folder of the same run, on the local disk."""
    folder, handler = tmp_path_factory.mktemp("local") / "run", signal.getsignal(signal.SIGTERM)
    assert main.main([*TINY_FLAGS, *FLAGS, f"--workdir={folder}"]) == 0
    signal.signal(signal.SIGTERM, handler)
    return folder


def put_folder(server, folder, name="some/where"):
    for path in folder.rglob("*"):
        if path.is_file():
            server.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def images(folder):
    for name in (
        "dog/1.png",
        "dog/deep/2.png",
        "cat/3.png",
        "cat/4.PNG",
        "cat/notes.txt",
        ".hidden/5.png",
        "cat/.6.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), 10 * len(name), np.uint8)).save(folder / name, "PNG")


@pytest.mark.parametrize("place", ["s3", pytest.param("gs", marks=pytest.mark.torture)], indirect=True)
def test_a_run_killed_on_a_store_ends_as_one_in_a_folder(server, place, local, train, capsys, draws):
    process = start(place, *FLAGS)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 14/20"):
            break
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    server.put("some/where/checkpoints/20/default/d/half", b"what a kill left")
    assert train(*TINY_FLAGS, *FLAGS, f"--workdir={place}") == 0
    resumed, errors = capsys.readouterr()
    assert f"report: {place}/report" in resumed
    assert "resuming at step" in resumed
    ours, theirs = (
        rows(server.objects["some/where/metrics.jsonl"].decode()),
        rows((local / "metrics.jsonl").read_text()),
    )
    assert [row["step"] for row in ours] == list(range(1, 21))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
    assert steps_in(f"{place}/checkpoints") == steps_in(local / "checkpoints")
    assert not any("half" in name for name in server.objects)
    assert any(name.startswith("some/where/events") for name in server.objects)
    assert "some/where/report/curves.png" in server.objects
    # No output or file contains a secret.
    kept = [path.read_bytes() for path in stores.cache_folder().rglob("*") if path.is_file()]
    for written in (*server.objects.values(), *kept, resumed.encode(), errors.encode(), "".join(output).encode()):
        assert SECRET.encode() not in written
        assert KEY_ID.encode() not in written

    for step in ("", "@15"):
        jax.tree.map(
            np.testing.assert_array_equal,
            inference.load(f"{place}{step}").arrays,
            inference.load(f"{local}{step}").arrays,
        )
    with pytest.raises(UserError, match=f"^{place} has no checkpoint of step 3; it has 15, 20"):
        inference.load(f"{place}@3")


def test_a_run_writes_its_checkpoints_to_gs(server, train):
    server.objects.clear()
    place = f"gs://{BUCKET}/run"
    flags = ("--config.steps=2", "--config.checkpoint.every=1")
    assert train(*TINY_FLAGS, *flags, f"--workdir={place}") == 0
    assert steps_in(f"{place}/checkpoints")[-1] == 2
    assert [row["step"] for row in rows(server.objects["run/metrics.jsonl"].decode())] == [1, 2]
    assert inference.load(place).class_names[0] == "0"


def test_a_run_on_a_store_is_evaluated(server, local, capsys):
    server.objects.clear()
    put_folder(server, local, "run")
    assert commands.main(["evaluate", f"--model=s3://{BUCKET}/run:raw", "--data=digits", "--json"]) == 0
    for name in [name for name in server.objects if name.endswith("commit_success.txt")]:
        server.objects.pop(name)
    with pytest.raises(UserError, match="no complete checkpoint"):
        inference.load(f"s3://{BUCKET}/run")
    last = rows((local / "metrics.jsonl").read_text())[-1]
    assert json.loads(capsys.readouterr().out)["accuracy"] == last["test/accuracy"]


@pytest.mark.torture
def test_processes_write_their_shards_to_gs_together(server, train, capsys):
    server.objects.clear()
    place, flags = (
        f"gs://{BUCKET}/run",
        ("--config.steps=4", "--config.checkpoint.every=2", "--config.checkpoint.keep=2"),
    )
    first, _ = outputs(together(place, 2, *flags))
    assert f"report: {place}/report" in first
    parts = {name.split("/")[4] for name in server.objects if name.startswith("run/checkpoints/4/default/ocdbt.")}
    assert parts == {"ocdbt.process_0", "ocdbt.process_1"}
    for name in [name for name in server.objects if name.startswith("run/checkpoints/4/")]:
        server.objects.pop(name)
    assert train(*TINY_FLAGS, MODEL, *flags, f"--workdir={place}") == 0
    assert "resuming at step 2" in capsys.readouterr().out
    assert [row["step"] for row in rows(server.objects["run/metrics.jsonl"].decode())] == [1, 2, 3, 4]


def test_another_config_is_refused_by_the_name_of_the_place(server, place, local, train, capsys):
    put_folder(server, local)
    before = dict(server.objects)
    assert train(*TINY_FLAGS, *FLAGS, f"--workdir={place}", "--config.optim.lr=1.0") == 2
    assert f"--workdir={place} contains a run of another config" in capsys.readouterr().err
    assert server.objects == before


def test_a_file_is_no_workdir(server, place):
    server.put("some/where", b"data")
    with pytest.raises(UserError, match=f"--workdir={place} is a file"), remote.opened(place):
        pass


def test_other_files_are_no_run(server, place, train, capsys):
    server.put("some/where/data.bin", b"data")
    assert train(*TINY_FLAGS, *FLAGS, f"--workdir={place}") == 2
    assert f"--workdir={place} has files but no config.json" in capsys.readouterr().err
    assert server.objects == {"some/where/data.bin": b"data"}


def test_a_checkpoint_is_replaced_only_once_the_next_is_complete(server, tmp_path):
    """At every moment of an upload there is a complete checkpoint."""
    server.objects.clear()
    complete = []
    server.on_request = lambda: complete.append(
        remote.complete_steps(name.removeprefix("run/") for name in server.objects)
    )
    try:
        with remote.opened(f"s3://{BUCKET}/run") as workdir:
            for step in range(1, 5):
                folder = workdir.checkpoints / str(step)
                folder.mkdir(parents=True)
                for name in ("a", "b"):
                    (folder / name).write_text(name)
                if step > 1:
                    for path in sorted((workdir.checkpoints / str(step - 1)).iterdir()):
                        path.unlink()
                    (workdir.checkpoints / str(step - 1)).rmdir()
                workdir.push()
    finally:
        del server.on_request
    start = complete.index([1])
    assert all(complete[start:]), complete
    assert sorted(server.objects) == [
        "run/checkpoints/4/a",
        "run/checkpoints/4/b",
        "run/checkpoints/4/commit_success.txt",
    ]


def test_the_records_of_runs_are_fetched_when_they_change(server, place):
    for name in ("a/config.json", "a/metrics.jsonl", "b/config.json", "b/checkpoints/1/commit_success.txt"):
        server.put(f"some/where/{name}", name.encode())
    records = remote.RunFiles(place)
    records.sync()
    assert sorted(p.relative_to(records.path).as_posix() for p in records.path.rglob("*.json*")) == [
        "a/config.json", "a/metrics.jsonl", "b/config.json",
    ]  # fmt: skip
    server.put("some/where/a/metrics.jsonl", b"more rows")
    asked = len(server.asked)
    records.sync()
    assert (records.path / "a" / "metrics.jsonl").read_bytes() == b"more rows"
    assert not any("config.json" in line for line in server.asked[asked:])


def test_runs_on_a_store_are_reported_here(server, place, local, tmp_path, capsys):
    put_folder(server, local)
    for flags in ([place], [str(local), f"--out={place}"]):
        with pytest.raises(UserError, match=r"--out=DIR"):
            commands.dispatch(["report", *flags])
    assert commands.main(["report", place, f"--out={tmp_path}"]) == 0
    assert (tmp_path / "report.csv").read_text().splitlines()[1].startswith("where,")
    capsys.readouterr()


def test_several_processes_are_refused_on_s3(monkeypatch, server):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"--workdir=s3://.*use a gs:// path"), remote.opened(f"s3://{BUCKET}/run"):
        pass


@pytest.mark.parametrize(("scheme", "library"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, train, capsys, scheme, library):
    stores._file_system.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    assert train(*TINY_FLAGS, f"--workdir={scheme}://{BUCKET}/run") == 2
    extra = "gcs" if scheme == "gs" else "s3"
    assert f'needs {library}, which is not installed: pip install "vit_jax[{extra}]"' in capsys.readouterr().err


def test_a_missing_bucket_is_reported(place):
    with pytest.raises(UserError, match=f"{place[:5]}another does not exist; create it"):
        stores.entries(place.replace(BUCKET, "another"))


def test_wrong_credentials_are_reported_and_not_shown(server, place):
    server.key_id = "AKIAOTHER00000000000"
    try:
        with pytest.raises(UserError, match=f"^{place[:11]}: no credentials, or no permission") as caught:
            stores.entries(place)
    finally:
        server.key_id = KEY_ID
    assert "AKIA" not in str(caught.value)


def test_missing_credentials_are_reported(server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    stores._file_system.cache_clear()
    with pytest.raises(UserError, match=r"no credentials.* run `aws configure`"):
        stores.entries(f"s3://{BUCKET}/run")
    stores._file_system.cache_clear()


def test_a_store_that_cannot_be_reached_is_reported(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    stores._file_system.cache_clear()
    with pytest.raises(UserError, match="cannot be reached") as caught:
        stores.entries(f"s3://{BUCKET}/run")
    assert KEY_ID not in str(caught.value)
    stores._file_system.cache_clear()


@pytest.mark.parametrize("place", ["gs://", "s3:///x", "gs://UPPER/x", "s3://key:secret@bucket/x"])
def test_a_place_without_a_bucket_is_reported(place):
    with pytest.raises(UserError, match=r"expected (gs|s3)://BUCKET/PATH") as caught:
        stores.entries(place)
    assert "secret" not in str(caught.value)


def test_other_stores_are_unknown():
    with pytest.raises(UserError, match="az://"):
        stores.is_remote("az://bucket/x")
    assert not stores.is_remote("hf:owner/name")
    assert not stores.is_remote("/data/gs")


def test_a_folder_on_a_store_gives_the_batches_of_one_here(server, place, tmp_path):
    images(tmp_path)
    put_folder(server, tmp_path)
    server.put("some/where/", b"")  # as some programs mark folders
    here, there = (open_source(f"folder:{path}", "train") for path in (tmp_path, place))
    assert there.class_names == here.class_names == ("cat", "dog")
    assert [there.name(i) for i in range(len(there))] == [
        here.name(i).replace(str(tmp_path), place) for i in range(len(here))
    ]
    ours, theirs = (
        [batch for _, batch in TrainData(source, "resize(4)", batch_size=2, seed=0).from_step(0, 3)]
        for source in (there, here)
    )
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    gone = there.name(0)
    server.objects.pop(gone.partition(f"{BUCKET}/")[2])
    with pytest.raises(UnreadableImage, match="No such object"):
        there[0]["image"].decode()


def test_names_that_lead_out_of_a_folder_are_left_out(server, place):
    for name in ("", "a", "../evil.npz", "b/../../evil.npz", "c//d", "folder/"):
        server.put(f"some/where/{name}", b"")
    assert list(stores.entries(place)) == ["a"]
    assert list(stores.entries(f"{place}/folder")) == []


def test_split_folders_and_missing_folders_on_a_store(server, place, tmp_path):
    for split in ("train", "val"):
        images(tmp_path / split)
    put_folder(server, tmp_path)
    assert len(open_source(f"folder:{place}", "val")) == 4
    with pytest.raises(UserError, match="Found no readable folder"):
        open_source(f"folder:{place}/nothing")


def test_a_table_on_a_store(server, place, tmp_path):
    images(tmp_path)
    (tmp_path / "t.csv").write_text("image,cat\ncat/3.png,1\ndog/1.png,0\n")
    put_folder(server, tmp_path)
    source = open_source(f"table:{place}/t.csv")
    assert source.name(1) == f"{place}/dog/1.png"
    assert source[1]["image"].decode().shape == (6, 5, 3)


def test_tfds_on_a_store_is_copied_split_by_split(server, place, tmp_path):
    from tests.data.test_tfds import pixels, write_dataset
    from vit_jax.data.sources.tfds import Tfds

    write_dataset(tmp_path)
    put_folder(server, tmp_path)
    source = Tfds("tiny", "test", data_dir=place)
    np.testing.assert_array_equal(source[1]["image"].decode(), pixels("test", 1))
    assert not list(stores.cache_folder().rglob("*-train.array_record*"))
    asked = len(server.asked)
    assert len(Tfds("tiny", "test", data_dir=place)) == len(source)
    assert not any("array_record" in line for line in server.asked[asked:])
    with pytest.raises(UserError, match=place):
        Tfds("other", "test", data_dir=place)


def test_weights_of_others_and_images_on_a_store(server, local, tmp_path, capsys):
    server.objects.clear()
    assert commands.main(["convert", f"--model={local}", "--to=npz", f"--out={tmp_path / 'model.npz'}"]) == 0
    put_folder(server, tmp_path, "run")
    for reference in (f"gs://{BUCKET}/run", f"s3://{BUCKET}/run/model.npz"):
        jax.tree.map(np.testing.assert_array_equal, inference.load(reference).arrays, inference.load(local).arrays)
    with pytest.raises(UserError, match=f"No model at 's3://{BUCKET}/nothing'"):
        inference.load(f"s3://{BUCKET}/nothing")
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(file, "PNG")
    server.put("images/a.png", file.getvalue())
    capsys.readouterr()
    assert commands.main(["predict", f"--model={local}", f"gs://{BUCKET}/images", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == f"gs://{BUCKET}/images/a.png"


def test_nothing_is_left_of_places_in_the_working_directory():
    assert not [name for name in os.listdir() if name.startswith(("gs:", "s3:"))]
