"""Find similar pictures: vit search build|query|duplicates ... --index=DIR."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax.cli.command import Parser, number_flag, output_folder, path_flag
from vit_jax.cli.predict import find_images
from vit_jax.printable import line
from vit_jax.types import Fraction, Units, UserError

KINDS = {
    "build": "index a folder of images, or add new images to an index",
    "query": "find the images most similar to a picture, a part of it, or a text",
    "duplicates": "find near-duplicates within an index, or between two",
}
EXAMPLES = """
vit search build photos --model=workdirs/photos --index=photos_index
vit search query cat.jpg --index=photos_index --label=cat --html=found.html
vit search query cat.jpg --index=photos_index --box=0.2,0.1,0.7,0.9 --json
vit search query --text="a cat on a sofa" --index=captioned_index
vit search duplicates --index=train_index --other=test_index --least=0.95
"""


def main(argv: Sequence[str]) -> int:
    """Build an index, query it, or look for near-duplicates."""
    what = next(iter(argv), "")
    if what in KINDS:
        return {"build": build, "query": query, "duplicates": duplicates}[what](argv[1:])
    parser = make_parser("")
    parser.add_argument("what", choices=tuple(KINDS), help="; ".join(f"{kind}: {text}" for kind, text in KINDS.items()))
    parser.parse(argv)
    raise UserError(f"Put the kind of search first: vit search {'|'.join(KINDS)} ...")


def make_parser(what: str) -> Parser:
    """Return the flags that all kinds share."""
    examples = "\n".join(x for x in EXAMPLES.splitlines() if f"vit search {what}" in x)
    parser = Parser(prog=f"vit search {what}".strip(), description=KINDS.get(what, __doc__), examples=examples)
    if what:
        parser.add_argument("--index", type=path_flag, required=True, metavar="DIR", help="the folder of the index")
        if what != "duplicates":
            parser.add_argument(
                "--trust", action="store_true", help="import code from outside vit_jax that the model names"
            )
    return parser


def build(argv: Sequence[str]) -> int:
    """Add the images of folders; exit code 1 if one could not be read."""
    parser = make_parser("build")
    parser.add_argument("folders", type=path_flag, nargs="+", metavar="FOLDER", help="folders of images, at any depth")
    parser.add_argument("--model", required=True, metavar="REF", help="any model reference")
    parser.add_argument(
        "--feature", default="features", help="an output of the model; tokens indexes every patch; default features"
    )
    parser.add_argument("--graph", action="store_true", help="build a graph for approximate search of fewer images too")
    flags = parser.parse(argv)

    from vit_jax import inference
    from vit_jax.data import files
    from vit_jax.search import build as building
    from vit_jax.search import nearest
    from vit_jax.search.embed import Embedder
    from vit_jax.search.index import Index

    found = {}
    for folder in flags.folders:
        if not Path(folder).is_dir():
            raise UserError(f"No folder at {folder}; expected a folder of images on this machine.")
        left_out = files.LeftOut()
        found[folder] = files.find_images(folder, left_out)
        files.report(folder, left_out)
        if not found[folder]:
            raise UserError(f"Found no images in {folder}; expected files ending in {', '.join(files.ENDINGS)}.")
    loaded = inference.load(flags.model, trust=flags.trust)
    embedder = Embedder(flags.model, loaded, flags.feature)
    index = Index.create(output_folder("--index", flags.index), embedder.about)
    failed: dict[str, str] = {}
    with index.locked():
        for folder, names in found.items():
            failed |= building.add_folder(index, embedder, folder, names, lambda text: print(text, flush=True))
        if len(index) >= nearest.GRAPH_FROM or flags.graph:
            print(f"graph of {len(index):,} vectors: {nearest.write_graph(index):.1f} s", flush=True)
    print(f"{line(flags.index)}: {len(index.names):,} images, {len(index):,} vectors of {index.about.length} numbers")
    for name, reason in list(failed.items())[:10]:
        print(f"unreadable: {line(name)}: {line(reason)}", file=sys.stderr)
    if len(failed) > 10:
        print(f"unreadable: {len(failed):,} images in all", file=sys.stderr)
    return 1 if failed else 0


def query(argv: Sequence[str]) -> int:
    """Print the most similar images to pictures."""
    parser = make_parser("query")
    parser.add_argument("pictures", type=path_flag, nargs="*", metavar="FILE_OR_FOLDER", help="pictures to search with")
    parser.add_argument(
        "--text", action="append", default=[], metavar="TEXT", help="search by a text, in an index of image_embedding"
    )
    parser.add_argument("--model", metavar="REF", help="the model of the index, if it has moved")
    parser.add_argument(
        "--box", type=box_flag, metavar="L,T,R,B", help="search by this part, as shares of width and height"
    )
    parser.add_argument("--k", type=number_flag(Units), default=10, help="how many images; default 10")
    parser.add_argument("--folder", metavar="PATH", help="only images below this folder of the index")
    parser.add_argument("--label", metavar="NAME", help="only images with this label, the folder that they are in")
    parser.add_argument("--exact", action="store_true", help="compare with every vector, even if there is a graph")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each picture")
    parser.add_argument("--html", type=path_flag, metavar="FILE", help="write a contact sheet, one self-contained page")
    flags = parser.parse(argv)
    if not flags.pictures and not flags.text:
        raise UserError("Give pictures to search with, or --text=TEXT. See --help.")
    pictures = list(find_images(flags.pictures))

    from vit_jax import inference
    from vit_jax.data.source import UnreadableImage
    from vit_jax.search.embed import Embedder
    from vit_jax.search.index import Index
    from vit_jax.search.nearest import Searcher
    from vit_jax.search.sheet import as_sheet

    index = Index.open(Path(flags.index))
    selected = index.selected(flags.folder, flags.label)
    reference = flags.model or index.about.model
    embedder = Embedder(reference, inference.load(reference, trust=flags.trust), index.about.feature)
    index.check(embedder.about)
    searcher = Searcher(index, flags.exact)
    sheet, failed = [], 0
    for asked, is_text in [*((text, True) for text in flags.text), *((picture, False) for picture in pictures)]:
        try:
            vector = embedder.describe(asked) if is_text else embedder.query(asked, flags.box)
            hits = searcher.images(vector, flags.k, selected)
        except (UnreadableImage, OSError) as error:
            failed += 1
            print(f"unreadable: {line(asked)}: {line(error)}", file=sys.stderr)
            continue
        found: list[dict[str, Any]] = [
            {"path": str(index.path(hit.image)), "label": index.labels[hit.image], "cosine": round(hit.cosine, 6)}
            | ({} if hit.patch is None else {"patch": divmod(hit.patch, embedder.grid[1])})
            for hit in hits
        ]
        if flags.json:
            print(json.dumps({"query": asked, "found": found}), flush=True)
        else:
            print(line(asked))
            for item in found:
                print(line(f"  {item['cosine']:.4f}  {item['path']}"), flush=True)
        captions = [(Path(item["path"]), f"{item['cosine']:.4f} {item['path']}") for item in found]
        sheet.append((f"Similar to {asked}", captions if is_text else [(Path(asked), "query"), *captions]))
    write_page(flags.html, as_sheet(f"Search of {flags.index}", sheet) if flags.html and sheet else "")
    return 1 if failed else 0


def duplicates(argv: Sequence[str]) -> int:
    """Print pairs of near-duplicates, the most similar first."""
    parser = make_parser("duplicates")
    parser.add_argument("--other", type=path_flag, metavar="DIR", help="a second index, such as of the test images")
    parser.add_argument("--least", type=number_flag(Fraction), default=0.98, help="cosine of a pair; default 0.98")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each pair")
    parser.add_argument("--html", type=path_flag, metavar="FILE", help="write a contact sheet of the first 500 pairs")
    flags = parser.parse(argv)

    from vit_jax.search.index import Index
    from vit_jax.search.nearest import near_duplicates
    from vit_jax.search.sheet import as_sheet

    index, other = Index.open(Path(flags.index)), None
    if flags.other is not None:
        other = Index.open(Path(flags.other))
        index.check(other.about)
    if index.about.per_image > 1:
        raise UserError(
            f"{flags.index} has a vector of each patch; near-duplicates need one an image: --feature=features."
        )
    second = index if other is None else other
    pairs = sorted(near_duplicates(index, other, flags.least), key=lambda pair: -pair[2])
    for a, b, cosine in pairs:
        first_path, second_path = str(index.path(a)), str(second.path(b))
        if flags.json:
            print(json.dumps({"a": first_path, "b": second_path, "cosine": round(cosine, 6)}))
        else:
            print(line(f"{cosine:.4f}  {first_path}  {second_path}"))
    rows = [
        (f"{cosine:.4f}", [(index.path(a), str(index.path(a))), (second.path(b), str(second.path(b)))])
        for a, b, cosine in pairs[:500]
    ]
    write_page(flags.html, as_sheet(f"Near-duplicates, cosine of at least {flags.least}", rows) if flags.html else "")
    images = len({a for a, _, _ in pairs} | ({b for _, b, _ in pairs} if other is None else set()))
    crowded = "; the features of this model are close to each other: raise --least, or index another model's"
    hint = crowded if images > len(index) / 4 else ""
    print(f"{len(pairs):,} pairs; {images:,} of {len(index):,} images are in one{hint}", file=sys.stderr)
    return 0


def box_flag(text: str) -> tuple[float, ...]:
    """Return the box of a flag, such as 0.1,0.2,0.5,0.9; for argparse."""
    import argparse

    read = number_flag(Fraction)
    numbers = tuple(read(word) for word in text.split(","))
    if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise argparse.ArgumentTypeError("expected left,top,right,bottom as shares, such as 0.2,0.1,0.7,0.9")
    return numbers


def write_page(path: str | None, text: str) -> None:
    """Write a page if a flag names a file."""
    if path is None or not text:
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html={path} cannot be written: {error.strerror}.") from None
    print(f"page: {line(path)}", file=sys.stderr)
