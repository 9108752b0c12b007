"""Load tokenizers of published text towers from their own files, or train a small one on captions.

A tokenizer is packed as one JSON file, which is also stored in a run's workdir. Nothing in it is executed.
"""

import base64
import binascii
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import html
import importlib
import json
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from vit_jax import stores
from vit_jax.config.factory import quoted
from vit_jax.config.hints import fits
from vit_jax.types import UserError

# The name of the packed file in a workdir, and of transformers' own file in a folder.
FILE = "tokenizer.json"
# Files of published models, in the order in which a folder is searched for them.
FILES = (FILE, "spiece.model", "tokenizer.model", "bpe_simple_vocab_16e6.txt.gz")
PACKED = "vit_jax_tokenizer"
# CLIP's words (open_clip, simple_tokenizer.py; openai/CLIP has the same).
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_MERGES = 49152 - 256 - 2
_MARK = "▁"  # a space in sentencepiece's pieces
Rule = Literal["", "clip", "siglip"]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Maps texts to ids: `before`, the ids of the text, `after`, and padding with `pad` up to a length.

    kind: the library that reads `model`, its own file as text (base 64 for sentencepiece). rule: how a text is cleaned
    first: "clip" applies ftfy and html.unescape and lower-cases it, "siglip" lower-cases it and removes punctuation.
    """

    kind: Literal["tokenizers", "sentencepiece"]
    model: str
    rule: Rule = ""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pad: int = 0

    def packed(self) -> str:
        """Return the tokenizer as JSON."""
        return json.dumps({PACKED: 1, **dataclasses.asdict(self)}, indent=1)

    @property
    def digest(self) -> str:
        """Identifies the tokenizer's ids: a hash of all fields."""
        return hashlib.sha256(self.packed().encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        """The number of possible ids: one more than the largest."""
        return max(self._made[1] - 1, *self.before, *self.after, self.pad) + 1

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens and padding."""
        return self._made[0](text)

    def __call__(self, text: str, length: int) -> tuple[Int32[np.ndarray, "n"], bool]:
        """Return `length` ids, and whether the text was truncated."""
        room = length - len(self.before) - len(self.after)
        if room < 1:
            raise UserError(
                f"Found texts of {length} tokens; expected room for a word in addition to {self.before + self.after}."
            )
        found = self.ids(text)
        ids = np.full(length, self.pad, np.int32)
        row = [*self.before, *found[:room], *self.after]
        ids[: len(row)] = row
        return ids, len(found) > room

    @functools.cached_property
    def _made(self) -> tuple[Callable[[str], list[int]], int]:
        make = {"sentencepiece": _sentencepiece, "tokenizers": _fast}[self.kind]
        try:
            return make(self.model, self.rule)
        except UserError:
            raise
        except Exception as error:  # the libraries raise many types for damaged models
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"The tokenizer is damaged ({reason}); restore its file, or make it again.") from None

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def library(name: str) -> Any:
    """Import a library of the extra `text`; raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"Texts need {name}: pip install 'vit_jax[text]', which installs it.") from None


def _fast(model: str, rule: Rule) -> tuple[Callable[[str], list[int]], int]:
    made = library("tokenizers").Tokenizer.from_str(model)
    made.no_truncation()
    made.no_padding()
    clean = _clip_text if rule == "clip" else lambda text: text
    return lambda text: made.encode(clean(text), add_special_tokens=False).ids, made.get_vocab_size()


def _sentencepiece(model: str, rule: Rule) -> tuple[Callable[[str], list[int]], int]:
    made = library("sentencepiece").SentencePieceProcessor()
    made.LoadFromSerializedProto(base64.b64decode(model))
    unknown = made.IdToPiece(made.unk_id())
    # A word is put in front of the text and cut off again, so that the space before the first word is kept.
    skip = len(made.encode(unknown))

    def ids(text: str) -> list[int]:
        if rule == "siglip":
            text = _siglip_text(_MARK + text.replace(_MARK, " "))
        return made.encode(unknown + text)[skip:]

    return ids, made.GetPieceSize()


def _clip_text(text: str) -> str:
    """Return a text cleaned in the way of CLIP's tokenizer."""
    text = html.unescape(html.unescape(library("ftfy").fix_text(text))).strip()
    return " ".join(text.split()).strip().lower()


def _siglip_text(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, with single spaces (big_vision, prompt_engineering.py)."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


# Reading.


def read(place: str) -> Tokenizer:
    """Read a tokenizer: a packed file, a workdir, or the file or folder of a published model.

    Supported are transformers' tokenizer.json, sentencepiece's .model (with SigLIP's rule) and CLIP's
    bpe_simple_vocab_16e6.txt.gz.
    """
    path = os.path.expanduser(place)
    if not stores.is_remote(path) and os.path.isdir(path):
        found = next((name for name in FILES if os.path.isfile(os.path.join(path, name))), None)
        if found is None:
            raise UserError(
                f"Found no tokenizer in {place}, expected {', '.join(FILES)}: give the file of a tokenizer."
            )
        path = os.path.join(path, found)
    try:
        data = stores.read(path)
    except OSError as error:
        raise UserError(
            f"Found no tokenizer at {place!r} ({error.strerror or error}), expected a file or a folder: `vit tokenizer` makes one "
            "from captions or from a published model."
        ) from None
    try:
        return _parsed(data, path)
    except UserError:
        raise
    except Exception as error:  # the libraries raise many types for damaged files
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{place} is no tokenizer that can be read ({type(error).__name__}: {reason}).") from None


def find(folder: os.PathLike[str] | None) -> Tokenizer | None:
    """Return the tokenizer in a model's folder, or None if it has no readable one."""
    if folder is not None and any(os.path.isfile(os.path.join(folder, name)) for name in FILES):
        with contextlib.suppress(UserError):  # its library is missing, which images do not need
            return read(str(folder))
    return None


def _parsed(data: bytes, path: str) -> Tokenizer:
    if path.endswith(".gz"):
        return from_merges(gzip.decompress(data).decode())
    if not data.lstrip().startswith(b"{"):
        model = base64.b64encode(data).decode()
        processor = library("sentencepiece").SentencePieceProcessor()
        processor.LoadFromSerializedProto(data)
        end = processor.eos_id()
        made = Tokenizer("sentencepiece", model, "siglip", (), (end,) if end >= 0 else (), max(end, 0))
    else:
        stated = json.loads(data)
        if PACKED in stated:  # its library is needed only when texts are tokenized
            return _unpacked(stated, path)
        made = _of_transformers(data.decode(), path)
    made.ids("a word")
    return made


def _unpacked(stated: Mapping[str, Any], path: str) -> Tokenizer:
    hints = {"model": str, "kind": Literal["tokenizers", "sentencepiece"], "rule": Rule}
    hints |= dict.fromkeys(("before", "after"), list[int]) | {"pad": int}
    for key, hint in hints.items():
        if not fits(stated.get(key), hint):
            raise UserError(f"{path} has {quoted(stated.get(key), 40)} as {key}; restore it, or make it again.")
    fields = {key: stated[key] for key in hints}
    try:
        base64.b64decode(fields["model"] if fields["kind"] == "sentencepiece" else "", validate=True)
    except binascii.Error as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or make it again.") from None
    return Tokenizer(**fields | {key: tuple(fields[key]) for key in ("before", "after")})


def _of_transformers(model: str, path: str) -> Tokenizer:
    """Read a tokenizer.json; the padding and SigLIP 2's lower-casing are in the config files next to it."""
    tokenizers = library("tokenizers")
    made = tokenizers.Tokenizer.from_str(model)
    stated, config = (_json_beside(path, name) for name in ("tokenizer_config.json", "config.json"))
    # SigLIP 2 was trained on lower-case texts that end in <eos> and have no <bos> (big_vision, SigLIP2_demo.ipynb).
    is_siglip = stated.get("tokenizer_class") == "Siglip2Tokenizer" or config.get("model_type") in ("siglip", "siglip2")
    if is_siglip and "Lowercase" not in model:
        lower = tokenizers.normalizers.Lowercase()
        made.normalizer = tokenizers.normalizers.Sequence([lower, *([made.normalizer] if made.normalizer else [])])
    made.no_truncation()
    made.no_padding()
    whole, alone = (made.encode("a", add_special_tokens=special).ids for special in (True, False))
    at = next(i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)
    before, after = tuple(whole[:at]), tuple(whole[at + len(alone) :])
    end = made.token_to_id("<eos>")
    if is_siglip and end is not None:
        before, after = (), (end,)
    pad = stated.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    known = made.token_to_id(pad) if isinstance(pad, str) else None
    return Tokenizer(
        "tokenizers", made.to_str(), "", before, after, (after[-1:] or (0,))[0] if known is None else known
    )


def _json_beside(path: str, name: str) -> dict[str, Any]:
    file = os.path.join(os.path.dirname(path), name)
    stated = json.loads(stores.read(file)) if os.path.isfile(file) else {}
    return stated if isinstance(stated, dict) else {}


def from_merges(text: str) -> Tokenizer:
    """Return CLIP's tokenizer, given its merges: a header, then two symbols per line in order of rank."""
    tokenizers = library("tokenizers")
    merges = [tuple(line.split()) for line in text.split("\n")[1 : 1 + _CLIP_MERGES]]
    merges = [merge for merge in merges if len(merge) == 2]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    words = [*symbols, *(f"{s}</w>" for s in symbols), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    model = tokenizers.models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix="")
    made = tokenizers.Tokenizer(model)
    pre = tokenizers.pre_tokenizers
    split = pre.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    return Tokenizer("tokenizers", made.to_str(), "clip", (len(words) - 2,), (len(words) - 1,), 0)


def train(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-pair tokenizer of lower-cased words (arXiv:1508.07909), with ids 0 to 2 for padding, begin and end.

    The smallest pieces are bytes, so that every text has ids. Raises UserError if the vocabulary has no room for them.
    """
    tokenizers = library("tokenizers")
    pieces = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(pieces) + 3:
        raise UserError(
            f"Found a vocabulary of {vocab_size}, expected at least {len(pieces) + 3}: 256 bytes and 3 marks."
        )
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    normal = tokenizers.normalizers
    made.normalizer = normal.Sequence([normal.NFC(), normal.Lowercase()])
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=sorted(pieces), show_progress=False
    )  # fmt: skip
    made.train_from_iterator(captions, trainer)
    return Tokenizer("tokenizers", made.to_str(), "", (1,), (2,), 0)


def captions_of(source: Any, key: str = "text") -> Iterator[str]:
    """Yield every caption of a source; images are not read."""
    for index in range(len(source)):
        texts = source[index][key]
        yield from ([texts] if isinstance(texts, str) else texts)


def checked(texts: Any) -> Sequence[str]:
    """Return the captions of an example as a sequence; raises ValueError for a caption that is empty or not text."""
    found = [texts] if isinstance(texts, str) else texts
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"its caption is {quoted(texts, 60)}, expected a text or several")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"its caption is {quoted(text, 60)}, expected a text that is not empty")
    return found
