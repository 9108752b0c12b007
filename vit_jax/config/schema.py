"""Top-level keys of a training config: kind, default, reason, and whether a run may resume with another value."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import ml_collections
from ml_collections.config_dict import FieldReference, placeholder

from vit_jax.config.factory import ConfigError, check_plain, flatten_config, near, quoted
from vit_jax.config.hints import cast, fits, hint_name
from vit_jax.types import BatchSize, Seed, Steps, Units


class Key(NamedTuple):
    """A top-level key. Optional keys have the default None, which means unset."""

    kind: Any
    default: Any
    reason: str
    may_change: bool = False


KEYS: dict[str, Key] = {
    "seed": Key(
        Seed, 0, "Everything random is a function of the seed, the step and the example's position in the global order."
    ),
    "steps": Key(Steps | None, None, "The length of the run, or `epochs`."),
    "epochs": Key(float | None, None, "The length of the run in passes over the data, or `steps`."),
    "batch_size": Key(BatchSize | None, 128, "Examples in a step, over all devices."),
    "parallel": Key(
        Literal["jit", "pmap"],
        "jit",
        '"jit" over the mesh below, or "pmap": data parallel with whole copies of the state.',
    ),
    "mesh": Key(
        dict[str, int | None],
        {"data": -1, "fsdp": 1, "tensor": 1},
        "Named axes of the devices, one of them -1 for all that are left. The batch is sharded over data and fsdp, parameters and "
        "optimiser over fsdp, heads and hidden units over tensor.",
        may_change=True,
    ),
    "sharding": Key(
        list[tuple[str, list[str | None]]] | None,
        None,
        "(regex of parameter names, mesh axis or None for each dimension), ...: how matching arrays are sharded, in place of the "
        "default; see vit_jax/sharding.py.",
        may_change=True,
    ),
    "image_size": Key(
        Units | None,
        None,
        "The value of SIZE in the preprocess specs, in pixels; SIZE*7//6 works too. By default the size of the model in `init`.",
    ),
    "model": Key(
        dict,
        {"type": "vit.ViT"},
        "The network. Without a type: the model that `init` names, with these fields changed.",
    ),
    "task": Key(
        dict,
        {"type": "classify.Classify", "loss_name": "softmax_xent", "label_smoothing": 0.0},
        'The objective. Of classify.Classify, "loss_name" is softmax_xent, sigmoid_xent or bce; "mix" may be {"type": "Mixup", '
        "...}, CutMix or MixupOrCutMix.",
    ),
    "grad": Key(
        dict,
        {"type": "gradient.Plain"},
        'How the gradient is taken: {"type": "accumulate.Accumulate", "microbatches": n} where a batch does not fit into memory, '
        "or sam.Sam or sam.Gsam, whose `inner` may be that.",
    ),
    "data": Key(
        dict,
        {
            "source": {"type": "fake.Fake"},
            "preprocess": "",
            # How images are preprocessed for the trained model; by default as for the first evaluator.
            "eval_preprocess": placeholder(str),
            # Threads that read and prepare examples, and how many batches they may be ahead.
            "threads": 2,
            "prefetch": 4,
            # Keep the examples on the devices as uint8, and crop and flip them in the step: for small images that fit.
            "resident": False,
            # Processes instead of threads, for hosts with many cores, because threads wait for Python's lock.
            "workers": 0,
            # How many times in a row each image appears, augmented differently (repeated augmentation,
            # arXiv:1901.09335).
            "repeats": 1,
            # Decoded images are kept in memory up to this many MiB.
            "cache_mb": 2048,
            # The share of unreadable images above which a run stops.
            "max_unreadable": 0.01,
        },
        "The training examples.",
    ),
    "optim": Key(
        dict,
        {
            "rule": {"type": "adam", "b1": 0.9, "b2": 0.999},
            "schedule": {"type": "cosine", "warmup_steps": 0.0},
            "lr": 1e-3,
            # Multiplied by the learning rate; for the parameters whose name matches the regex.
            "weight_decay": 0.0,
            "decay": "kernel$",
            # (regex, {"lr": factor, "weight_decay": factor}), ...: the first regex that matches a name applies.
            "multipliers": placeholder(list),
            "clip_norm": 1.0,
            # The learning rate of each block is this factor times the next block's (arXiv:2111.06377); none by default.
            "layer_decay": placeholder(float),
            # The final weight decay, reached along a half cosine over the run; constant by default.
            "weight_decay_end": placeholder(float),
        },
        "The optimiser.",
    ),
    "ema_decay": Key(
        float | None,
        None,
        "Decay of a running average of the weights, which is then evaluated, and the weights themselves as NAME_raw; none by "
        "default.",
    ),
    "init": Key(
        dict | None,
        None,
        '{"ref": MODEL, "head": "auto", "posemb": "auto", "patches": "auto", "allow": REGEX} initializes from the '
        "weights of another run or of a published "
        "model. `head` is keep, reset (and without the representation layer) or map (by the classes' names); auto keeps it where "
        "the classes are the same. `posemb` is bilinear, bicubic or bicubic_no_antialias, `patches` bilinear or "
        "bicubic: how position and patch embeddings are resized; auto follows the model's authors. Parameters that `allow` "
        "finds may be missing or left over; `trust` allows code from outside vit_jax.",
    ),
    "teacher": Key(
        str | None,
        None,
        "The model that a task such as distill.Distill or beit.Beit learns from: any reference, as in `init`.",
    ),
    "freeze": Key(str | None, None, "Parameters whose name the regex finds keep their initial values."),
    "by_size": Key(
        list[dict] | None,
        None,
        '[{"below": n, KEY: VALUE, ...}, ...]: with fewer than n training images, keys without a value get these; the first such '
        "row counts, and a row without `below` is for all sizes.",
    ),
    "checkpoint": Key(
        dict,
        {"every": 1000, "keep": 2, "best": placeholder(str), "best_mode": "max"},
        "`best` names a metric whose best checkpoint is kept besides the last `keep`.",
        may_change=True,
    ),
    "log": Key(
        dict,
        {"every": 50, "tensorboard": True, "wandb": placeholder(str)},
        "Besides metrics.jsonl: TensorBoard events, and Weights & Biases, where `wandb` names a project.",
        may_change=True,
    ),
    "evals": Key(
        dict[str, dict],
        {},
        "name -> evaluator; `every` is the number of steps between two runs, besides the end.",
        may_change=True,
    ),
}
# Nested keys that cannot change the numbers either.
MAY_CHANGE = (
    *(name for name, key in KEYS.items() if key.may_change),
    *("model.attention", "model.remat", "data.threads", "data.workers", "data.prefetch", "data.cache_mb"),
    *("data.source.path", "data.source.data_dir", "data.eval_preprocess"),
)


def defaults() -> ml_collections.ConfigDict:
    """Return a config with the default of every key; optional keys are placeholders of their kind."""
    kinds = {"steps": int, "epochs": float, "sharding": list, "image_size": int, "ema_decay": float, "init": dict}
    kinds |= {"teacher": str, "freeze": str, "by_size": list}
    return ml_collections.ConfigDict(
        {name: placeholder(kinds[name]) if key.default is None else _fresh(key.default) for name, key in KEYS.items()}
    )


def _fresh(default: Any) -> Any:
    """Return a default with placeholders of its own, since a config writes into them."""
    if isinstance(default, dict):
        return {key: _fresh(value) for key, value in default.items()}
    return placeholder(default.get_type()) if isinstance(default, FieldReference) else default


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain config with every key, None if unset; raises ConfigError for a wrong key, kind or value."""
    check_plain(config)
    for name, value in config.items():
        if name not in KEYS:
            raise ConfigError(f"config.{name}: unknown key{near(name, KEYS)}")
        kind = KEYS[name].kind
        if value is not None and not fits(value, kind):
            raise ConfigError(f"config.{name} is {quoted(value)}; expected {hint_name(kind)}.")
    lacking = [name for name, key in KEYS.items() if key.default is not None and config.get(name) is None]
    lacking = [name for name in lacking if name != "batch_size" or config.get("by_size") is None]
    if lacking:
        raise ConfigError(f"config lacks {', '.join(lacking)}; configs/common.py has every key.")
    given = {name: cast(value, KEYS[name].kind) for name, value in config.items() if value is not None}
    config = dict.fromkeys(KEYS) | given
    steps, epochs, batch_size, ema_decay = (config[name] for name in ("steps", "epochs", "batch_size", "ema_decay"))
    if (steps is not None and epochs is not None) or (config["by_size"] is None and steps is None and epochs is None):
        raise ConfigError(
            f"config: set one of steps and epochs; found steps={steps} and epochs={epochs}. Write --config.steps=1000 or "
            "--config.epochs=10, either of which replaces the config's other."
        )
    if min((value for value in (batch_size, steps, epochs) if value is not None), default=1) <= 0:
        raise ConfigError(f"config: steps={steps}, epochs={epochs} and batch_size={batch_size} must be positive.")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ConfigError(f"config.ema_decay is {ema_decay}; expected a number in [0, 1).")
    return config


def may_change(path: str) -> bool:
    """Return whether a run may resume with another value of a dotted key."""
    return any(path == key or path.startswith(f"{key}.") for key in MAY_CHANGE)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the paths at which two plain configs differ: paths that change a run's numbers, and paths that cannot."""
    before, after = ({k: v for k, v in flatten_config(c).items() if v is not None} for c in (old, new))
    paths = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    return [key for key in paths if not may_change(key)], [key for key in paths if may_change(key)]
