"""The folder of a run: config.json, metrics.jsonl, TensorBoard events, checkpoints/<step>/ and report/."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint import lock
from vit_jax.checkpoint.saver import Saver, check_path, steps_in
from vit_jax.chips import hardware
from vit_jax.config import factory as configs
from vit_jax.config import schema
from vit_jax.config.upgrade import VERSION, upgrade
from vit_jax.types import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "vit_jax")
# The keys of a run's length, which may change if its schedule continues unchanged.
LENGTH = ("steps", "epochs")
# Facts about the data that follow from the evaluators, which may change.
MAY_CHANGE = ("preprocess", "image_shape", "fields")
# The keys of config.json, besides commit and hardware.
RECORD = {"config": dict, "data": dict, "versions": dict, "changes": list}


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read(workdir: str | Path) -> dict[str, Any]:
    """Return config.json of a workdir: `config`, `data`, `versions`, `git_commit`, `hardware` and `changes`."""
    path = Path(workdir) / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not a workdir: it has no config.json. Give the --workdir of a training run, or "
            "a folder with the weights of a model."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or begin in a new folder.") from None
    if not isinstance(record, dict):
        raise UserError(f"{path} is not the config.json of a training run: it contains a {type(record).__name__}.")
    for key, kind in RECORD.items():
        if not isinstance(record.get(key), kind):
            raise UserError(
                f"{path} is not the config.json of a training run: the key {key!r}, a {kind.__name__}, is missing; restore it, or "
                "begin in a new folder."
            )
    return upgrade(record)


def check(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Raise UserError if a folder cannot be the workdir of a config: another config, other files, not writable."""
    path = Path(workdir)
    check_path(path)
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"--workdir={workdir} is a file; give a new folder, or the folder of a run to resume.")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be used: {error.strerror}.") from None
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise UserError(f"--workdir={workdir} cannot be made: {parent} is a file, or a link to nothing.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir} cannot be written: no permission in {parent}.")
    if (path / "config.json").exists():
        for name, is_right in (("metrics.jsonl", Path.is_file), ("checkpoints", Path.is_dir), ("report", Path.is_dir)):
            if (path / name).exists() and not is_right(path / name):
                kind = "file" if (path / name).is_file() else "folder"
                raise UserError(f"{path / name} is a {kind}, which no run writes; move it away or give a new folder.")
        changed, _ = schema.changed_keys(read(path)["config"], _as_json(config))
        if changed and set(changed) <= set(LENGTH):
            check_extension(path, read(path), config)
        elif changed:
            raise UserError(
                f"--workdir={workdir} contains a run of another config; {_table(read(path)['config'], config, changed)}\n"
                "Give another --workdir, or the same config to resume."
            )
    elif path.is_dir() and any(entry.name not in ("config.json.partial", lock.NAME) for entry in path.iterdir()):
        raise UserError(
            f"--workdir={workdir} has files but no config.json, so it is not a run to resume; give a new folder."
        )


def check_extension(path: Path, record: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise UserError if a run cannot be extended to another length from its latest checkpoint.

    It can if its learning rate up to there is the same in a run of the new length, and neither its task nor its weight decay
    follows the length.
    """
    done = (steps_in(path / "checkpoints") or [0])[-1]
    old, new = (configs.steps_of(one, record["data"]["num_examples"]) for one in (record["config"], config))
    schedule, taken = config["optim"]["schedule"], np.arange(max(done, 1))
    before, after = (
        np.asarray(jax.vmap(configs.build(schedule, "optim.schedule", steps=n))(taken)) for n in (old, new)
    )
    decays = config["optim"].get("weight_decay_end") is not None
    counted = "steps" in configs.parameters(configs.resolve(config["task"].get("type"), "vit_jax.tasks", "task"))
    if new >= done and np.abs(before - after).max() < 1e-6 and not ((counted or decays) and done):
        return
    reason = f"its learning rate, by optim.schedule={schedule['type']!r}, has followed a length of {old:,} steps"
    if new < done:
        reason = "that is less than it has done"
    elif decays:
        reason = f"its weight decay, by optim.weight_decay_end, has followed a length of {old:,} steps"
    elif counted:
        reason = f"its task, {config['task']['type']}, has followed a length of {old:,} steps"
    raise UserError(
        f"--workdir={path} is at step {done:,} of {old:,} and cannot go on to {new:,}: {reason}. Begin a new run from its weights: "
        f"""--workdir=NEW --config.init="{{'ref': '{path}'}}". Runs with optim.schedule of type constant or rsqrt, or wsd before """
        "it decays, with warmup_steps as a number of steps, can be extended."
    )


def open_run(workdir: str | Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> Path:
    """Create a checked workdir and its config.json, or record changes since the run began.

    data: facts about the data, such as class names, layout, number of examples, and how images are prepared for the
    trained model. Raises UserError if they differ from when the run began, except for the fields and what follows from the
    evaluators.
    """
    path, config, data = Path(workdir), _as_json(config), _as_json(data)
    now = {"versions": versions(), "git_commit": git_commit(), "hardware": hardware(jax.devices())}
    if not (path / "config.json").exists():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}.") from None
        record: dict[str, Any] = {"version": VERSION, "config": config, "data": data, "changes": [], **now}
    else:
        record = read(path)
        keys = [key for key in data if record["data"].get(key) != data[key] and key not in MAY_CHANGE]
        if keys:
            raise UserError(f"--workdir={workdir} was begun on other data; {_table(record['data'], data, keys)}")
        changed, free = schema.changed_keys(record["config"], config)
        if not (changed or free) and all(record.get(key) == value for key, value in now.items()):
            return path
        record = record | {
            "config": config,
            "data": data,
            "changes": [*record["changes"], {"keys": [*changed, *free], **now}],
        }
    write_text(path / "config.json", json.dumps(record, indent=1))
    return path


def write_model(
    path: Path,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    params: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write a workdir with a model that was not trained here; its parameters and state are the checkpoint of step 0.

    The workdir appears only when it is complete. Raises UserError if it cannot be written.
    """
    check_path(path)
    partial = path.with_name(path.name + ".partial")
    data = {"layout": {"image": (data["image_shape"], "uint8")}, "fields": {"image": "Image"}, **data}
    record = {"version": VERSION, "config": _as_json(config), "data": _as_json(data), "changes": []}
    record["versions"] = versions()
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        saver = Saver()
        saver.open(partial / "checkpoints")
        arrays = {f"params/{name}": leaf for name, leaf in params.items()}
        saver.save(0, arrays | {f"state/{name}": leaf for name, leaf in (state or {}).items()}, {})
        saver.close()
        write_text(partial / "config.json", json.dumps(record | {"git_commit": git_commit()}, indent=1))
        os.rename(partial, path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of the code, with "+changes" if files differ from it; None outside a repository."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _as_json(tree: Any) -> Any:
    return json.loads(json.dumps(tree))


def _table(old: Mapping[str, Any], new: Mapping[str, Any], keys: list[str]) -> str:
    before, after = configs.flatten_config(old), configs.flatten_config(_as_json(new))
    lines = [f"\n  {key}: {before.get(key)!r} there, {after.get(key)!r} here" for key in keys]
    return "these keys differ:" + "".join(configs.first(lines))
