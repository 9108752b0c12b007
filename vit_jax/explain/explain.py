"""Explain models on images: every applicable method, its arrays, its figures and one page with all of them."""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax.config.factory import near
from vit_jax.data.source import UnreadableImage
from vit_jax.explain.faithfulness import Faithfulness, score, table
from vit_jax.explain.method import HeatMap, Look, Method
from vit_jax.explain.network import Network
from vit_jax.explain.page import as_page
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Explained:
    """The written page, the scores of the methods' maps if requested, and remarks."""

    page: Path
    scores: Sequence[tuple[str, Faithfulness]]
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The readable images, preprocessed for each network, and why the unreadable ones failed."""

    names: Sequence[str]
    images: Sequence[np.ndarray]
    unreadable: Mapping[str, str]


def read(networks: Sequence[Network], paths: Sequence[str]) -> Inputs:
    """Read the images at these paths; raises UserError if none can be read."""
    names: list[str] = []
    unreadable: dict[str, str] = {}
    found: list[list[np.ndarray]] = [[] for _ in networks]
    for path in paths:
        try:
            images = [network.loaded.preprocess(path) for network in networks]
        except UnreadableImage as error:
            unreadable[path] = str(error)
            continue
        names.append(path)
        for several, image in zip(found, images, strict=True):
            several.append(image)
    if not names:
        first, reason = next(iter(unreadable.items()))
        raise UserError(f"None of the {len(paths)} images can be read; for example {first}: {reason}.")
    return Inputs(names, [np.stack(images) for images in found], unreadable)


def class_of(network: Network, name: str) -> int:
    """Return the position of a class named by the user; raises UserError, with similar names, if it is unknown."""
    known = network.loaded.class_names
    if name in known:
        return known.index(name)
    loose = [i for i, other in enumerate(known) if other.casefold() == name.strip().casefold()]
    if len(loose) == 1:
        return loose[0]
    if not known:
        raise UserError(f"--class={name!r}: {network.name} has no classes; leave --class out.")
    hint = near(name, known) if len(known) <= 20 or near(name, known).startswith("; did") else "."
    raise UserError(f"--class={name!r} is not one of the {len(known)} classes of {network.name}{hint}")


def check(
    networks: Sequence[Network], methods: Mapping[str, Callable[[Network], Method]], chosen: bool
) -> tuple[dict[str, list[Method]], list[str]]:
    """Return the methods that apply to all networks, one instance per network, and why the others do not apply.

    Raises UserError for the first that does not apply if the user chose the methods, and if none is left; compiles
    nothing.
    """
    kept: dict[str, list[Method]] = {}
    notes = []
    for name, make in methods.items():
        try:
            made = [make(network) for network in networks]
            for method, network in zip(made, networks, strict=True):
                method.check(network)
        except UserError as error:
            if chosen:
                raise
            notes.append(f"without {name}: {error}")
            continue
        kept[name] = made
    if not kept:
        raise UserError("No method applies to this model:\n" + "\n".join(notes))
    return kept, notes


def targets_of(network: Network, images: np.ndarray, wanted: str | None) -> np.ndarray | None:
    """Return the class to explain for each image: the wanted or the most probable one; None if there are no classes."""
    if network.loaded.has_untrained_head:
        return None
    if wanted is not None:
        return np.full(len(images), class_of(network, wanted), np.int32)
    return network.probs(images).argmax(axis=1).astype(np.int32)


def explain(
    networks: Sequence[Network],
    methods: Mapping[str, Sequence[Method]],
    inputs: Inputs,
    out: Path,
    wanted: str | None = None,
    faithfulness: bool = False,
    notes: Sequence[str] = (),
) -> Explained:
    """Write NAME.npz, NAME_1.png, ... for each method, faithfulness.json and index.html into a folder."""
    targets = [targets_of(network, images, wanted) for network, images in zip(networks, inputs.images, strict=True)]
    sections, scores = [], []
    for name, made in methods.items():
        looks = []
        for position, (method, network, images) in enumerate(zip(made, networks, inputs.images, strict=True)):
            arrays = method.arrays(network, images, targets[position])
            looks.append(Look(network, inputs.names, images, targets[position], arrays))
            suffix = f"_{position + 1}" if len(networks) > 1 else ""
            save_arrays(out / f"{file_name(name)}{suffix}.npz", looks[-1])
            if faithfulness and isinstance(method, HeatMap) and method.importance and targets[position] is not None:
                scores.append((f"{name}{suffix}", score(method, looks[-1])))
        files = []
        for number, figure in enumerate(made[0].figures(looks)):
            files.append(out / f"{file_name(name)}_{number + 1}.png")
            figure.draw(files[-1])
        sections.append((made[0].title, summary_of(made[0]), files))
    text = ""
    if scores:
        text = (
            "Area under the probability of the class, and rank correlation with maps of shuffled weights:\n\n"
            + table(scores)
        )
        values = {name: dataclasses.asdict(x) for name, x in scores}
        (out / "faithfulness.json").write_text(json.dumps(values, indent=1) + "\n")
    remarks = [*notes, *(f"unreadable, left out: {path}: {reason}" for path, reason in inputs.unreadable.items())]
    page = out / "index.html"
    title = "Explanations of " + " and ".join(network.name for network in networks)
    page.write_text(as_page(title, facts(networks, inputs, targets), sections, remarks, text), encoding="utf-8")
    return Explained(page, scores, remarks)


def facts(networks: Sequence[Network], inputs: Inputs, targets: Sequence[np.ndarray | None]) -> list[list[str]]:
    """Return the table of images and explained classes, with a header row."""
    rows = [["image", *(network.name for network in networks)]]
    for index, name in enumerate(inputs.names):
        cells = [
            "-" if chosen is None else network.loaded.class_names[chosen[index]]
            for network, chosen in zip(networks, targets, strict=True)
        ]
        rows.append([name, *cells])
    return rows


def save_arrays(path: Path, look: Look) -> None:
    """Write the arrays of a look with the names of its images and the explained classes."""
    names = np.array([name.encode("utf-8", "replace").decode() for name in look.names])
    classes = {} if look.targets is None else {"target": look.targets}
    np.savez_compressed(path, allow_pickle=False, images=look.images, names=names, **classes, **look.arrays)


def file_name(method: str) -> str:
    """Return a method's name as a file name."""
    return re.sub(r"\W+", "_", method)


def summary_of(method: Method) -> str:
    """Return the first paragraph of a method's docstring."""
    return " ".join((inspect.getdoc(type(method)) or "").partition("\n\n")[0].split())
