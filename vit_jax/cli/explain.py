"""Explain a model on images: vit explain --model=REF IMAGES... --out=DIR [--method=NAMES] [--class=NAME] [--faithfulness]."""

import functools
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.cli.command import Parser, number_flag, output_folder, path_flag, split_overrides
from vit_jax.cli.predict import find_images
from vit_jax.config import factory as configs
from vit_jax.printable import line
from vit_jax.types import Count, UserError

PACKAGE = "vit_jax.explain.methods"
EXAMPLES = """
vit explain --model=runs/pets photos --out=explained
vit explain --model=runs/pets cat.jpg --out=explained --method=rollout,gradcam --class=cat --faithfulness
"""


def main(argv: Sequence[str]) -> int:
    """Write figures, arrays and one page of them; exit code 1 if an image could not be read."""
    given, rest = split_overrides(argv, "--method.")
    flags = make_parser().parse(rest)
    paths = [str(path) for path in itertools.islice(find_images(flags.images), flags.max_images + 1)]
    notes = []
    if len(paths) > flags.max_images:
        paths = paths[: flags.max_images]
        notes.append(f"only the first {flags.max_images} images; --max_images takes more")
    chosen = [name for text in flags.method for name in text.split(",")]
    targets = {name: target_of(name, flags.trust) for name in chosen or short_names()}

    from vit_jax import inference
    from vit_jax.explain import explain as explaining
    from vit_jax.explain.network import Network

    networks = [Network(name, inference.load(name, trust=flags.trust)) for name in flags.model]
    for network in networks:
        notes += network.loaded.notes
    arguments = arguments_of(given, targets)
    makers = {name: functools.partial(make, target, arguments[name], flags.data) for name, target in targets.items()}
    if flags.wanted is not None:
        for network in networks:
            explaining.class_of(network, flags.wanted)
    methods, without = explaining.check(networks, makers, bool(chosen))
    out, inputs = output_folder("--out", flags.out), explaining.read(networks, paths)
    found = explaining.explain(networks, methods, inputs, out, flags.wanted, flags.faithfulness, [*notes, *without])
    for note in found.notes:
        print(line(f"note: {note}"), file=sys.stderr)
    if found.scores:
        from vit_jax.explain.faithfulness import table

        print(table(found.scores))
    print(f"page: {found.page}")
    return 1 if inputs.unreadable else 0


def make_parser() -> Parser:
    """Return the flags of the command."""
    parser = Parser(prog="vit explain", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="FILE_OR_FOLDER", help="image files, or folders of them")
    parser.add_argument(
        "--model", required=True, action="append", metavar="REF", help="any model reference; twice for two side by side"
    )
    parser.add_argument(
        "--out", type=path_flag, required=True, metavar="DIR", help="a folder for the page, the figures and the arrays"
    )
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAMES",
        help=f"one or several of {', '.join(short_names())}; default: all that have a meaning for the model",
    )
    parser.add_argument("--method.KEY", metavar="VALUE", help="an argument of the methods, such as point=0.5,0.5")
    parser.add_argument(
        "--class", dest="wanted", metavar="NAME", help="the class to explain; default: each image's most probable class"
    )
    parser.add_argument(
        "--data", metavar="SOURCE", help="images of neighbours, such as folder:PATH; default: the training images"
    )
    parser.add_argument(
        "--faithfulness", action="store_true", help="score the maps: deletion, insertion, and shuffled weights"
    )
    parser.add_argument("--max_images", type=number_flag(Count), default=32, help="images to explain; default 32")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    return parser


def short_names() -> list[str]:
    """Return the names of the methods here, without importing them."""
    import importlib.util
    import pkgutil

    spec = importlib.util.find_spec("vit_jax.explain")
    assert spec is not None
    places = [os.path.join(place, "methods") for place in spec.submodule_search_locations or ()]
    return sorted(info.name for info in pkgutil.iter_modules(places))


def target_of(name: str, trust: bool) -> Any:
    """Return the method of a name such as "rollout" or "my.module:Method"."""
    known = {kind.partition(".")[0]: kind for kind in configs.types_in(PACKAGE)}
    if ":" not in name and name not in known and name not in known.values():
        raise UserError(f"--method={name!r} is unknown{configs.near(name, known)}")
    return configs.resolve(known.get(name, name), PACKAGE, "--method", trust)


def arguments_of(given: Sequence[tuple[str, str]], targets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the given arguments that each method takes; raises UserError for an argument that no method has."""
    from vit_jax.config.load import value_of

    known = {key for target in targets.values() for key in configs.parameters(target)} - {"data"}
    for key, _ in given:
        if key == "data":
            raise UserError("--method.data follows from --data; give that.")
        if key not in known:
            raise UserError(f"--method.{key}: unknown key{configs.near(key, known)}")
    return {
        name: {
            key: value_of(f"--method.{key}", text, configs.parameter_hints(target)[key])
            for key, text in given
            if key in configs.parameters(target)
        }
        for name, target in targets.items()
    }


def make(target: Any, arguments: Mapping[str, Any], data: str | None, network: Any) -> Any:
    """Return a method for a network, with its data if it reads any."""
    if "data" not in configs.parameters(target):
        return configs.call("--method", target, arguments)
    return configs.call("--method", target, arguments, data=open_data(data, network))


def open_data(data: str | None, network: Any) -> Any:
    """Return the images that a reference names, or the network's training images; None if these are unknown."""
    from vit_jax.data.open import open_source

    trained_on = network.loaded.config.get("data", {}).get("source")
    if data is not None:
        split = None if data.startswith("table:") else "train"
        return open_source(data, split, network.loaded.image_shape[2], trained_on)
    return configs.build(trained_on, "data.source", trust=False) if trained_on else None
