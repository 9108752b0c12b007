"""A checkpoint gives the arrays that were saved, or a message: never others."""

import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.checkpoint import saver
from vit_jax.checkpoint.checksums import checksums
from vit_jax.types import UserError

WORKDIRS = Path(__file__).parent.parent / "workdirs"
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def arrays(step: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(step)
    shapes = {"params/kernel": (40, 30), "params/bias": (30,), "opt_state/mu": (40, 30), "step": ()}
    flat = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    return flat | {"params/half": flat["params/bias"].astype(jnp.bfloat16), "params/zero": jnp.zeros((50, 20))}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two checkpoints, of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("checksums") / "checkpoints"
    writer = saver.Saver(keep=2)
    writer.open(folder)
    for step in (1, 2):
        writer.save(step, arrays(step), {})
    writer.close()
    return folder


def restored(folder: Path, step: int = 2, parts: tuple[str, ...] = ("",)) -> dict[str, bytes]:
    like = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=HERE)
        for name, leaf in arrays(step).items()
        if name.startswith(parts)
    }
    return {name: np.asarray(leaf).tobytes() for name, leaf in saver.restore(folder, step, like, parts).items()}


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def flips(written: Path, tmp_path: Path, count: int) -> dict[str, int]:
    """Flip one bit of one file at a time and count what restoring gives."""
    right = {name: np.asarray(leaf).tobytes() for name, leaf in arrays(2).items()}
    counts, draws = {"right": 0, "wrong": 0}, random.Random(0)
    messages: list[str] = []
    files = sorted(path for path in (written / "2").rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(count):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(written, folder)
        path = folder / files[number % len(files)].relative_to(written)
        flip(path, draws.randrange(8 * path.stat().st_size))
        try:
            counts["right" if restored(folder) == right else "wrong"] += 1
        except UserError as error:
            messages.append(str(error))
    assert all("Step 1 is good" in message or "cannot be read now" in message for message in messages), messages
    return counts | {"refused": len(messages)}


def test_a_flipped_bit_is_never_restored_as_other_weights(written, tmp_path):
    counts = flips(written, tmp_path, 24)
    assert counts["wrong"] == 0
    assert counts["refused"]


@pytest.mark.torture
def test_300_flipped_bits_are_never_restored_as_other_weights(written, tmp_path):
    counts = flips(written, tmp_path, 300)
    print(counts)
    assert counts["wrong"] == 0


@pytest.mark.parametrize("parts", [("",), ("params/",)])
def test_an_array_that_differs_is_named_with_an_older_good_step(parts, written, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    writer = saver.Saver(keep=3)
    shutil.copytree(written, folder)
    writer.open(folder)
    flat = arrays(3)
    wrong = flat | {"params/kernel": flat["params/kernel"].at[3, 4].add(1e-6)}
    monkeypatch.setattr(saver, "checksums", lambda _: checksums(wrong))  # of other arrays than are written
    writer.save(3, flat, {})
    writer.close()
    monkeypatch.setattr(saver, "checksums", checksums)
    with pytest.raises(UserError, match=r"1 of \d arrays differ .* params/kernel. Step 2 is good: .* remove .*/3 to"):
        restored(folder, 3, parts)
    assert restored(folder, 3, ("opt_state/",)).keys() == {"opt_state/mu"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool"])
def test_a_change_of_any_element_changes_the_checksum(dtype):
    array = np.asarray(jnp.zeros((3, 5), dtype))
    found = {checksums({"x": array})["x"]}
    for index in np.ndindex(array.shape):
        other = array.copy()
        other[index] = 1
        found.add(checksums({"x": other})["x"])
    assert len(found) == 1 + array.size


def test_two_elements_that_change_places_change_the_checksum():
    array = np.zeros((64, 64), np.float32)
    array[0, 0], other = 1.0, array.copy()
    other[5, 7] = 1.0
    assert checksums({"x": array}) != checksums({"x": other})


def test_a_checkpoint_without_checksums_loads_and_it_is_said_once(capsys):
    folder = WORKDIRS / "plain" / "checkpoints"
    (step,) = saver.steps_in(folder)[-1:]
    like = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=HERE)
        for name, leaf in saver.shapes_of(folder, step).items()
    }
    saver._note_unchecked.cache_clear()
    for _ in range(2):
        saver.restore(folder, step, like)
    assert capsys.readouterr().err.count("has no checksums") == 1
