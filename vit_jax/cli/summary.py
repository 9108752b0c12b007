"""Show a network as a table: vit summary --model=REF or --config=FILE.py[:ARG] [--depth=N] [--batch_size=N] [--json]."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from vit_jax.cli.command import Parser, number_flag, split_overrides
from vit_jax.cli.plan import with_unit
from vit_jax.types import BatchSize, Count, Units, UserError

EXAMPLES = """
vit summary --model=S/16
vit summary --config=configs/digits.py --depth=1
"""


def main(argv: Sequence[str]) -> int:
    """Print layers, shapes, parameters and FLOPs, and the memory of a forward pass, or of a train step of a config."""
    overrides, rest = split_overrides(argv)
    flags = make_parser().parse(rest)
    if (flags.model is None) == (flags.config is None):
        raise UserError("Give one of --model=REF and --config=FILE.py.")
    if overrides and flags.config is None:
        raise UserError(
            f"--config.{overrides[0][0]} changes a config; found --model={flags.model}. Give --config=FILE.py."
        )

    from vit_jax.perf.summary import as_text, layers

    made = of_model(flags) if flags.config is None else of_config(flags, overrides)
    module, variables, image_shape, batch_size, rest_size, memory = made
    rows = layers(module, variables, image_shape, batch_size, flags.depth)
    seen = memory()
    if flags.json:
        print(
            json.dumps({"batch_size": batch_size, "layers": [dataclasses.asdict(row) for row in rows], "memory": seen})
        )
        return 0
    print(as_text(rows))
    print(f"\n{batch_size} image{'s' if batch_size > 1 else ''} of {'x'.join(map(str, image_shape))}, one forward pass")
    if rest_size:
        print(f"{rest_size:,} parameters more are outside of the image encoder")
    for what, size in seen.items():
        print(f"{what}: {'unknown' if size is None else with_unit(float(size), 'B')}")
    return 0


def make_parser() -> Parser:
    """Return the flags of the command."""
    parser = Parser(prog="vit summary", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument(
        "--model", metavar="REF", help="any model reference, such as a workdir, hf:..., or a size such as S/16"
    )
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="a file with get_config()")
    parser.add_argument("--config.KEY", metavar="VALUE", help="another value for a key of the config")
    parser.add_argument("--num_classes", type=number_flag(Units), help="number of classes, if the data set is not here")
    parser.add_argument("--depth", type=number_flag(Count), default=2, help="levels of modules; default 2, the blocks")
    parser.add_argument(
        "--batch_size", type=number_flag(BatchSize), help="batch size of the forward pass; default 1, or the config's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    return parser


def of_model(flags: Any) -> tuple[Any, ...]:
    """Return a model's encoder, weights, image shape, batch size, other parameters, and a function for the memory."""
    import jax

    from vit_jax import inference
    from vit_jax.perf.step import compile_program

    loaded = inference.load(flags.model, trust=flags.trust)
    module, variables = loaded.task.backbone(loaded.weights)
    batch_size = flags.batch_size or 1
    sizes = [leaf.size for leaf in jax.tree.leaves(loaded.weights["params"])]
    rest_size = sum(sizes) - sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    def memory() -> dict[str, int | None]:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loaded.weights)
        images = jax.ShapeDtypeStruct((batch_size, *loaded.image_shape), "uint8")
        program = compile_program(jax.jit(loaded.task.predict), shapes, {"image": images})
        return {
            "memory of the parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.weights)),
            "memory of a forward pass, weights included": program.memory,
        }

    return module, variables, loaded.image_shape, batch_size, rest_size, memory


def of_config(flags: Any, overrides: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
    """Return the same as `of_model` for a config, with shapes of the weights and the memory of a train step."""
    import jax

    from vit_jax.config.load import load
    from vit_jax.perf.plan import plan
    from vit_jax.perf.stand_in import stand_in_config
    from vit_jax.train.build import build_parts

    config, spec, note = stand_in_config(load(flags.config, overrides).to_dict(), flags.num_classes)
    if note:
        print(f"note: {note}", file=sys.stderr)
    parts = build_parts(config, spec)
    if "image" not in spec.layout:
        raise UserError(f"The examples have {', '.join(spec.layout)}, but no image, so there is no network to show.")
    weights = jax.eval_shape(lambda s: s.evaluated(parts.task), parts.shapes)[""]
    module, variables = parts.task.backbone(weights)
    trained = sum(leaf.size for leaf in jax.tree.leaves((parts.shapes.params, parts.shapes.frozen)))
    rest_size = trained - sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    def memory() -> dict[str, float | None]:
        found = plan(config, spec, jax.devices())
        return {
            f"memory of a train step of {config['batch_size']} images, on each of {found.devices} device(s)": found.peak,
            "  of it parameters": found.params,
            "  of it optimiser": found.optimizer,
            "  of it activations and other temporaries": found.temporaries,
        }

    return (
        module,
        variables,
        spec.layout["image"].shape[-3:],
        flags.batch_size or config["batch_size"],
        rest_size,
        memory,
    )
