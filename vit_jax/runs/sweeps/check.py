"""A sweep file read, and every one of its runs checked before anything starts."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.config import load as config_file
from vit_jax.config.factory import check_part, first, near
from vit_jax.runs.sweeps.names import run_names
from vit_jax.runs.sweeps.space import Sweep
from vit_jax.types import UserError

EXAMPLE = "experiments/digits_sweep_202611/sweep.py"


def read_sweep(argument: str, overrides: Sequence[tuple[str, str]]) -> Sweep:
    """The sweep of FILE.py[:ARG]; raises UserError that lists every mistake in its runs, given the command's overrides."""
    sweep: Sweep = config_file.run(argument, "get_sweep", Sweep, "sweep", EXAMPLE)
    names = run_names(sweep.runs)
    wrong: dict[str, str] = {}  # by message, as one mistake is often in every run
    seen: dict[str, str] = {}
    for name, settings in zip(names, sweep.runs, strict=True):
        try:
            check_overrides(settings, overrides)
            config = config_file.load(config_of(sweep, settings), [*overrides, *flags_of(settings)]).to_dict()
            for key, value in settings.items():
                check_part(key, value)
            check_metric(sweep.metric, config)
            text = json.dumps(config, sort_keys=True)
            if text in seen:
                raise UserError(f"the run has the same config as {seen[text]}; give each but once.")
            seen[text] = name
        except UserError as error:
            wrong.setdefault(str(error), name)
    if wrong:
        lines = first([f"\n  {name}: {message}" for message, name in wrong.items()])
        raise UserError(f"sweep {argument}: nothing was started, as these runs are wrong:{''.join(lines)}")
    return sweep


def config_of(sweep: Sweep, settings: Mapping[str, Any]) -> str:
    """The config of a run: its own, or the sweep's."""
    config = settings.get("config", sweep.config)
    if not isinstance(config, str):
        raise UserError(f"config is {config!r}; expected FILE.py[:ARG].")
    return config


def flags_of(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run changes of its config, as keys and texts of --config.KEY=VALUE."""
    return [(key, text_of(value)) for key, value in settings.items() if key != "config"]


def text_of(value: Any) -> str:
    """The text that the command line reads as a value."""
    if not isinstance(value, str):
        return repr(value)
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if value.lower() not in ("true", "false", "none"):
            return value
    return repr(value)  # quoted, as it would be taken for another kind


def check_overrides(settings: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> None:
    """Raises UserError where a run sets what the command line sets too, so that one of them would be without effect."""
    for key, _ in overrides:
        if other := next((other for other in settings if f"{key}.".startswith(f"{other}.")), None):
            raise UserError(f"--config.{key}: the sweep sets {other} itself; leave one of them out.")


def check_metric(metric: str | None, config: Mapping[str, Any]) -> None:
    """Raises UserError where a metric such as "test/accuracy" is of an evaluator that the config lacks."""
    title = (metric or "").rpartition("/")[0]
    if title and title.removesuffix("_raw") not in config["evals"]:
        raise UserError(f"the sweep's metric is {metric!r}, but evals has no {title!r}{near(title, config['evals'])}")
