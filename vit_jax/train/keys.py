"""The keys of a training config: checked, and filled in where they follow from the pretrained model or the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vit_jax.checkpoint import workdir as workdirs
from vit_jax.config.factory import ConfigError, build, call, check_plain
from vit_jax.config.kinds import fits
from vit_jax.data.source import Source
from vit_jax.inference import Loaded
from vit_jax.train import origin

OPTIONAL = ("steps", "epochs", "sharding", "ema_decay", "init", "image_size", "freeze", "by_size", "teacher")


def settle(
    config: dict[str, Any], path: Path | None, images: Source | None = None
) -> tuple[dict[str, Any], Source, Loaded | None, dict[str, Any] | None]:
    """The config with every key checked and filled in, its training images, and the model that the run begins from.

    The last is what the config takes from that model. `images` may be others than the config's; without a path nothing is
    trained. Raises UserError where the workdir holds a run of another config.
    """
    config = dict.fromkeys(OPTIONAL) | config
    check_plain(config)
    call("config", check_keys, config)
    images = build(config["data"].get("source"), "data.source") if images is None else images
    pretrained, facts = origin.load(config["init"], path)
    config = origin.fill_in(config, facts, images)
    config = fill_by_size(config, len(images))
    call("config", check_keys, config)
    if path is not None:
        workdirs.check(path, config)
    return config, images, pretrained, facts


def fill_by_size(config: dict[str, Any], num_images: int) -> dict[str, Any]:
    """The config with the keys that have no value taken from the row of `by_size` for so many training images."""
    rows = config["by_size"] or []
    for index, row in enumerate(rows):
        if not fits(row.get("below"), int | None):
            raise ConfigError(
                f"by_size[{index}].below is {row['below']!r}; expected a number of images, or None for the rest."
            )
    row = next((row for row in rows if row.get("below") is None or num_images < row["below"]), {})

    def filled(part: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        both = {key: filled(part[key], values[key]) for key in values if isinstance(part.get(key), dict)}
        return {**part, **{key: value for key, value in values.items() if part.get(key) is None}, **both}

    values = {key: value for key, value in row.items() if key != "below"}
    if config["epochs"] is not None:
        values.pop("steps", None)
    return filled(config, values) | {"by_size": None}


def check_keys(
    *,
    seed: int,
    parallel: Literal["jit", "pmap"],
    mesh: dict[str, int | None],
    model: dict,
    task: dict,
    grad: dict,
    data: dict,
    optim: dict,
    checkpoint: dict,
    log: dict,
    evals: dict[str, dict],
    batch_size: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    sharding: list[tuple[str, list[str | None]]] | None = None,
    ema_decay: float | None = None,
    init: dict | None = None,
    teacher: str | None = None,
    image_size: int | None = None,
    freeze: str | None = None,
    by_size: list[dict] | None = None,
) -> None:
    """The keys of a training config and their kinds; configs/common.py says what they mean."""
    if by_size is None and batch_size is None:
        raise ConfigError("config: batch_size is unset; expected a number of images.")
    if (steps is not None and epochs is not None) or (by_size is None and steps is None and epochs is None):
        raise ConfigError(f"config: set one of steps and epochs; found steps={steps} and epochs={epochs}.")
    if min((value for value in (batch_size, steps, epochs) if value is not None), default=1) <= 0:
        raise ConfigError(f"config: steps={steps}, epochs={epochs} and batch_size={batch_size} must be positive.")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ConfigError(f"config.ema_decay is {ema_decay}; expected a number in [0, 1).")
