"""Make a tokenizer file: vit tokenizer --out=FILE (--data=pairs:PATH [--size=N] | --from=REF) [--try=TEXT]."""

from collections.abc import Sequence
from pathlib import Path

from vit_jax.cli.command import Parser, number_flag, path_flag
from vit_jax.types import Units, UserError

EXAMPLES = """
vit tokenizer --data=pairs:captions.csv --size=2000 --out=tokenizer.json
vit tokenizer --from=hf:google/siglip-base-patch16-224 --out=tokenizer.json
vit tokenizer --from=bpe_simple_vocab_16e6.txt.gz --out=clip.json --try="a photo of a cat"
"""


def main(argv: Sequence[str]) -> int:
    """Write a tokenizer, trained on captions or taken from a model, as one file for tokenize(FILE, length)."""
    parser = Parser(prog="vit tokenizer", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--out", required=True, type=path_flag, metavar="FILE", help="a new file")
    parser.add_argument("--data", metavar="SOURCE", help="images with captions to train on, such as pairs:PATH")
    parser.add_argument("--split", default="train", help="split of --data; default: train")
    parser.add_argument("--size", type=number_flag(Units), default=2000, help="ids of the vocabulary; default 2000")
    parser.add_argument(
        "--from",
        dest="place",
        metavar="REF",
        help="the tokenizer of a model: a file, a folder, a workdir or hf:OWNER/NAME",
    )
    parser.add_argument("--try", dest="text", metavar="TEXT", help="print the ids of a text")
    flags = parser.parse(argv)
    if (flags.data is None) == (flags.place is None):
        raise UserError("Give one of --data, to train a tokenizer, and --from, to take a model's tokenizer.")
    out = Path(flags.out)
    if out.exists():
        raise UserError(f"--out={out} already exists; give a new path, or move it away.")

    from vit_jax.checkpoint.workdir import write_text
    from vit_jax.data import tokenizers
    from vit_jax.data.open import open_source
    from vit_jax.data.source import Text
    from vit_jax.pretrained import hub

    if flags.place is not None:
        place = flags.place
        if place.startswith("hf:"):
            place = str(hub.download_tokenizer(place.removeprefix("hf:")))
        made = tokenizers.read(place)
    else:
        source = open_source(flags.data, flags.split)
        if not isinstance(source.fields.get("text"), Text):
            raise UserError(f"--data={flags.data} has no captions; expected such as pairs:PATH.")
        made = tokenizers.train(tokenizers.captions_of(source), flags.size)
    try:
        write_text(out, made.packed())
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}.") from None
    begin, end = made.before, made.after
    print(
        f"{out}: {made.vocab_size:,} ids (task.text.vocab_size), before a text {begin}, after it {end}, padding {made.pad}"
    )
    if flags.text is not None:
        print(*made.before, *made.ids(flags.text), *made.after)
    return 0
