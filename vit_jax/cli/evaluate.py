"""Evaluate a model on data: vit evaluate --model=REF --data=digits|folder:PATH|tfds:NAME [--split=S] [--json]."""

import json
import sys
from collections.abc import Sequence

from vit_jax.cli.command import Parser
from vit_jax.types import UserError


def main(argv: Sequence[str]) -> int:
    """Prints accuracy, loss and number of examples, each example counted exactly once."""
    parser = Parser(prog="vit evaluate", description=__doc__)
    parser.add_argument("--model", required=True, metavar="REF", help="a workdir, DIR@STEP, file, folder, hf:...")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="digits, folder:PATH or tfds:NAME")
    parser.add_argument("--split", help="such as test, val, train[:90%%]; default: the test images")
    parser.add_argument("--batch_size", type=int, help="default: that of the training run's evaluation, or 256")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    flags = parser.parse(argv)
    if flags.batch_size is not None and flags.batch_size < 1:
        raise UserError(f"--batch_size={flags.batch_size} must be at least 1.")

    from vit_jax import inference
    from vit_jax.data.reference import Relabelled, open_source
    from vit_jax.evals.classification import Classification

    loaded = inference.load(flags.model, trust=flags.trust)
    remarks = [f"note: {note}" for note in loaded.notes]
    if not loaded.spec["num_classes"]:
        raise UserError(f"{flags.model} has no head, so it has no accuracy; fine-tune it first (configs/finetune.py).")
    if loaded.has_untrained_head:
        remarks.append(f"warning: the head of {flags.model} is untrained, so its accuracy means nothing")
    trained_on = loaded.config.get("data", {}).get("source", {})
    source, names = open_source(flags.data, flags.split, loaded.image_shape[2], trained_on), loaded.class_names
    if not loaded.names_known and source.class_names != names and len(source.class_names) == len(names):
        remarks.append("note: the model does not name its classes; the data's are taken to be them, in order")
        names = source.class_names
    source = Relabelled(source, names)
    sizes = [spec.get("batch_size") for spec in loaded.config.get("evals", {}).values()]
    batch_size = flags.batch_size or next((size for size in sizes if isinstance(size, int) and size > 0), 256)
    evaluator = Classification(source, loaded.preprocess_spec, batch_size)
    result = evaluator(loaded.predict)
    remarks += [f"unreadable, left out: {name}: {reason}" for name, reason in evaluator.data.unreadable.items()]
    if remarks:
        print(*remarks, sep="\n", file=sys.stderr)
    if flags.json:
        print(json.dumps({"model": flags.model, "data": flags.data, **result}))
    else:
        print(
            f"accuracy {100 * result['accuracy']:.2f} %  loss {result['loss']:.4f}  {result['num_examples']:,} images"
        )
    return 0
