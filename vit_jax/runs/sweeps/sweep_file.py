"""Load a sweep file and check every run before anything starts."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.config import load as config_file
from vit_jax.config.factory import check_part, first, near
from vit_jax.data.transforms.preprocess import OPS, parse_steps, split_spec
from vit_jax.runs.sweeps.space import Sweep, run_names
from vit_jax.train.settings import fill_sizes
from vit_jax.types import UserError

ANY_SIZE = 224
EXAMPLE = "experiments/digits_sweep_202611/sweep.py"


def load_sweep(argument: str, overrides: Sequence[tuple[str, str]]) -> Sweep:
    """Load the sweep of FILE.py[:ARG]; raises UserError listing every mistake in its runs with the given overrides."""
    sweep: Sweep = config_file.run(argument, "get_sweep", Sweep, "sweep", EXAMPLE)
    names = run_names(sweep.runs)
    mistakes: dict[str, str] = {}  # run name by message, because runs often share a mistake
    seen: dict[str, str] = {}
    for name, settings in zip(names, sweep.runs, strict=True):
        try:
            check_overrides(settings, overrides)
            config = config_file.load(config_of(sweep, settings), [*overrides, *config_flags(settings)]).to_dict()
            for key, value in settings.items():
                check_part(key, value)
            check_preprocess(config)
            check_metric(sweep.metric, config)
            text = json.dumps(config, sort_keys=True)
            if text in seen:
                raise UserError(f"the run has the same config as {seen[text]}; remove one of them.")
            seen[text] = name
        except UserError as error:
            mistakes.setdefault(str(error), name)
    if mistakes:
        lines = first([f"\n  {name}: {message}" for message, name in mistakes.items()])
        raise UserError(f"sweep {argument}: nothing was started, because these runs have mistakes:{''.join(lines)}")
    return sweep


def config_of(sweep: Sweep, settings: Mapping[str, Any]) -> str:
    """Return the config file of a run: its own or the sweep's."""
    config = settings.get("config", sweep.config)
    if not isinstance(config, str):
        raise UserError(f"config is {config!r}; expected FILE.py[:ARG].")
    return config


def config_flags(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings of a run as (key, value text) for --config.KEY=VALUE."""
    return [(key, flag_text(value)) for key, value in settings.items() if key != "config"]


def flag_text(value: Any) -> str:
    """Return the text that the command line parses into the value."""
    if not isinstance(value, str):
        return repr(value)
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if value.lower() not in ("true", "false", "none"):
            return value
    return repr(value)  # quoted, because it would be parsed as another type


def check_overrides(settings: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> None:
    """Raise UserError if a run and the command line set the same key."""
    for key, _ in overrides:
        if other := next((other for other in settings if f"{key}.".startswith(f"{other}.")), None):
            raise UserError(f"--config.{key}: the sweep also sets {other}; remove one of the two.")


def check_preprocess(config: Mapping[str, Any]) -> None:
    """Raise UserError for an invalid preprocess spec; SIZE is replaced by any size if the model's is unknown."""
    sized = fill_sizes(config, {"image_size": ANY_SIZE})
    for where, part in {
        "data": sized["data"],
        **{f"evals.{name}": part for name, part in sized["evals"].items()},
    }.items():
        for key, spec in part.items():
            if key.endswith("preprocess") and spec is not None:
                try:
                    parse_steps(spec, OPS, split_spec(spec))
                except UserError as error:
                    raise UserError(f"{where}.{key}: {error}") from None


def check_metric(metric: str | None, config: Mapping[str, Any]) -> None:
    """Raise UserError if the evaluator of a metric such as "test/accuracy" is missing from the config."""
    title = (metric or "").rpartition("/")[0]
    if title and title.removesuffix("_raw") not in config["evals"]:
        raise UserError(f"the sweep's metric is {metric!r}, but evals has no {title!r}{near(title, config['evals'])}")
