"""Evaluate a model: vit evaluate --model=REF --data=SOURCE [--evaluator=NAME] [--report=DIR] [--json]."""

import atexit
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.cli.command import Parser, number_flag, output_folder, path_flag, split_overrides
from vit_jax.config import factory as configs
from vit_jax.printable import line
from vit_jax.types import BatchSize, UserError

# Arguments of evaluators that follow from flags of the command.
GIVEN = {
    "source": "--data",
    "train": "--train",
    "batch_size": "--batch_size",
    "preprocess": "--model",
    "tokenize": "--model",
}
# (reference, split) -> the images, each opened once for all evaluators.
Images = Callable[[str, str | None], Any]

EXAMPLES = """
vit evaluate --model=workdirs/digits --data=digits
vit evaluate --model=workdirs/photos@2400 --data=folder:PHOTOS --split=test --per_class
vit evaluate --model=hf:timm/vit_small_patch16_224.augreg_in21k --data=folder:PHOTOS --evaluator=knn,probe --evaluator.k=5
vit evaluate --model=workdirs/siglip --data=pairs:captions.csv --evaluator=retrieval
vit evaluate --model=hf:google/siglip-base-patch16-224 --data=folder:PHOTOS --evaluator=zeroshot --evaluator.templates=templates.txt
"""


def main(argv: Sequence[str]) -> int:
    """Print what the evaluators measure, by default accuracy, loss and number of examples, each counted exactly once."""
    given, rest = split_overrides(argv, "--evaluator.")
    flags = make_parser().parse(rest)
    if flags.label_key is not None and not flags.data.startswith("tfds:"):
        raise UserError(f"--label_key={flags.label_key} is only for --data=tfds:NAME; found {flags.data}.")
    if flags.split is not None and flags.data.startswith("table:"):
        raise UserError(
            f"--split={flags.split}: a table has no splits; list the images to be evaluated in one of its own."
        )

    from vit_jax import inference
    from vit_jax.evals.classification import per_class
    from vit_jax.evals.evaluator import check_needs, evaluate
    from vit_jax.train.metrics import summary
    from vit_jax.viz.classes import Predictions, write_classes

    loaded = inference.load(flags.model, trust=flags.trust)
    remarks = [f"note: {note}" for note in loaded.notes]
    images = functools.cache(functools.partial(open_data, loaded, flags.label_key))
    names = [name for text in flags.evaluator for name in text.split(",")] or [default_of(loaded, flags, images)]
    targets = {name: target_of(name) for name in names}
    check_keys(given, targets)
    reports = report_folders(flags.report, targets)
    results: dict[str, dict[str, float]] = {}
    tables: list[tuple[str, float, int]] = []
    for name, target in targets.items():
        evaluator = make_evaluator(target, given, flags, loaded, images, remarks)
        if "image" in evaluator.spec.layout:
            loaded.check_images(*evaluator.spec.layout["image"])
        check_needs(name, evaluator, loaded.task.predict, loaded.weights)
        results[name], measured = evaluate(evaluator, loaded.predictor, loaded.weights)
        remarks += [f"unreadable, left out: {file}: {reason}" for file, reason in evaluator.data.unreadable.items()]
        classified = "predicted" in measured.get("", {})
        if flags.per_class and classified:
            tables += per_class(measured[""], evaluator.spec.class_names)
        if flags.report and classified:
            write_classes(Predictions.of(measured[""], evaluator.spec.class_names, evaluator.data), reports[name])
            remarks.append(f"report: {reports[name]}")
        if not flags.json:  # each as soon as it is known, since some take long
            title = f"{name}: " if len(targets) > 1 else ""
            print(line(title + summary(results[name])), flush=True)
    if remarks:
        print(*dict.fromkeys(map(line, remarks)), sep="\n", file=sys.stderr)
    if flags.json:
        values = results if len(results) > 1 else results[names[0]]
        classes = {"per_class": {name: [accuracy, count] for name, accuracy, count in tables}}
        print(json.dumps({"model": flags.model, "data": flags.data, **values, **(classes if flags.per_class else {})}))
        return 0
    width = max((len(line(name)) for name, _, _ in tables), default=0)
    for name, accuracy, count in tables:
        print(f"{line(name):<{width}}  {100 * accuracy:6.2f} %  {count:,} images")
    return 0


def make_parser() -> Parser:
    """Return the flags of the command."""
    parser = Parser(prog="vit evaluate", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument(
        "--model", required=True, metavar="REF", help="any model reference, such as a workdir, DIR@STEP, hf:..."
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="digits, folder:PATH, table:FILE, pairs:PATH, tfds:NAME, segments:PATH, coco:PATH or your own MODULE:SOURCE",
    )
    parser.add_argument("--split", help="such as test, val, train[:90%%]; default: the test images")
    parser.add_argument("--label_key", metavar="KEY", help="the feature of tfds:NAME with the labels; default: label")
    parser.add_argument(
        "--evaluator",
        metavar="NAMES",
        action="append",
        default=[],
        help="one or several, such as classification,knn,fewshot,probe,corruptions",
    )
    parser.add_argument("--evaluator.KEY", metavar="VALUE", help="an argument of the evaluator, such as k of knn")
    parser.add_argument("--train", metavar="SOURCE", help="training images of fewshot, knn and probe; default: --data")
    parser.add_argument("--train_split", default="train", help="split of the training images; default: train")
    parser.add_argument(
        "--batch_size", type=number_flag(BatchSize), help="default: as in the training run's evaluation, or 256"
    )
    parser.add_argument("--per_class", action="store_true", help="print the accuracy of each class too")
    parser.add_argument(
        "--report",
        type=path_flag,
        metavar="DIR",
        help="write the confusion matrix, the worst classes and the mistakes into a folder",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    return parser


def report_folders(report: str | None, targets: Mapping[str, Any]) -> dict[str, Path]:
    """Return the folder of each evaluator's report; raises UserError if none of them measures a classifier."""
    from vit_jax.evals.classification import Classification

    if report is None:
        return {}
    if not any(issubclass(target, Classification) for target in targets.values()):
        raise UserError(f"--report shows what a classifier confuses; found --evaluator={','.join(targets)}.")
    place = output_folder("--report", report)
    return {name: place / name.replace(":", "_") if len(targets) > 1 else place for name in targets}


def default_of(loaded: Any, flags: Any, images: Images) -> str:
    """Return the default evaluator for the model's task, or for data with several labels."""
    from vit_jax.data.source import Labels

    if flags.data.startswith("pairs:"):
        return "retrieval"
    if loaded.task.measured_by != "classification":
        return loaded.task.measured_by
    # Only in these sources may an image have several labels.
    several = flags.data.startswith(("table:", "tfds:")) and any(
        isinstance(field, Labels) for field in images(flags.data, flags.split).fields.values()
    )
    return "multilabel" if several else "classification"


def open_data(loaded: Any, label_key: str | None, reference: str, split: str | None) -> Any:
    """Return the images of a split of `reference`, with the channels that the model takes; label_key is only for tfds:NAME."""
    from vit_jax.data.open import open_source

    trained_on = loaded.config.get("data", {}).get("source", {})
    own_key = {"label_key": label_key} if label_key and reference.startswith("tfds:") else {}
    return open_source(reference, split, loaded.image_shape[2], {**trained_on, **own_key})


def target_of(name: str) -> Any:
    """Return the evaluator of a name such as "knn" or "my.module:Knn"."""
    known = evaluators()
    if ":" not in name and name not in known and name not in known.values():
        raise UserError(f"--evaluator={name!r} is unknown{configs.near(name, known)}")
    return configs.resolve(known.get(name, name), "vit_jax.evals", "--evaluator")


def check_keys(given: Sequence[tuple[str, str]], targets: Mapping[str, Any]) -> None:
    """Raise UserError for an argument that none of the evaluators has, or that the command sets."""
    known = {key for target in targets.values() for key in configs.parameters(target)} - set(GIVEN)
    for key, _ in given:
        if key in GIVEN:
            raise UserError(f"--evaluator.{key} follows from {GIVEN[key]}; give that.")
        if key not in known:
            having = [name for name in evaluators() if key in configs.parameters(target_of(name))]
            hint = f"; it is one of --evaluator={' or '.join(having)}" if having else configs.near(key, known)
            raise UserError(f"--evaluator.{key}: unknown key{hint}")


def evaluators() -> dict[str, str]:
    """Return the short names of the evaluators here, with their types."""
    return {kind.partition(".")[0]: kind for kind in configs.types_in("vit_jax.evals")}


def make_evaluator(
    target: Any, given: Sequence[tuple[str, str]], flags: Any, loaded: Any, images: Images, remarks: list[str]
) -> Any:
    """Build an evaluator of the data that the flags name, from the given arguments that it takes."""
    from vit_jax.config.load import value_of
    from vit_jax.data.open import Relabelled

    takes = configs.parameters(target)
    hints = configs.parameter_hints(target)
    arguments = {key: value_of(f"--evaluator.{key}", text, hints[key]) for key, text in given if key in takes}
    # Training images must not be among the test images.
    split = flags.split or ("test" if "train" in takes else None)
    source = images(flags.data, split)
    parts: dict[str, Any] = {"source": source, "preprocess": loaded.preprocess_spec}
    if "tokenize" in takes:
        parts["tokenize"] = tokenize_spec(loaded)
    elif "text_embedding" in target.needs:
        parts["preprocess"] = "|".join(
            filter(None, (loaded.preprocess_spec, tokenize_spec(loaded, captions_of(source))))
        )
    if "train" in takes:
        parts["train"] = images(flags.train or flags.data, flags.train_split)
    if {"logits", "probs"} & set(target.needs):
        if not loaded.class_names:
            raise UserError(
                f"{flags.model} has no head, so it has no accuracy; fine-tune it first (configs/finetune.py), or measure its "
                "features: --evaluator=knn,probe."
            )
        if loaded.has_untrained_head:
            remarks.append(f"warning: the head of {flags.model} is untrained, so its accuracy is meaningless")
    if not target.own_classes and source.class_names:
        names = loaded.class_names
        if not loaded.names_known and source.class_names != names and len(source.class_names) == len(names):
            remarks.append("note: the model does not name its classes; they are assumed to be the data's, in order")
            names = source.class_names
        parts["source"] = Relabelled(source, names)
    sizes = [spec.get("batch_size") for spec in loaded.config.get("evals", {}).values()]
    size = flags.batch_size or next((size for size in sizes if isinstance(size, int) and size > 0), 256)
    return configs.call("--evaluator", target, arguments, **parts, batch_size=size)


def tokenize_spec(loaded: Any, captions: int | None = None) -> str:
    """Return the transform that makes token ids for a model; raises UserError if it compares no texts."""
    loaded.tokens(["a word"])
    file = Path(tempfile.mkdtemp(prefix="vit_jax")) / "tokenizer.json"
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    file.write_text(loaded.tokenizer.packed(), encoding="utf-8")
    return f"tokenize({str(file)!r}, {loaded.text_length}" + (")" if captions is None else f", {captions})")


def captions_of(source: Any) -> int:
    """Return the number of captions of the first image; raises UserError for data without captions."""
    from vit_jax.data.source import Text

    if not isinstance(source.fields.get("text"), Text):
        raise UserError("--evaluator=retrieval is for images with captions; found none: give --data=pairs:PATH.")
    first = source[0]["text"]
    return 1 if isinstance(first, str) else max(1, len(first))
