"""Tokenizers give the ids of the libraries whose files they read."""

import gzip
import importlib.util
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.peers import transformers
from vit_jax.__main__ import dispatch
from vit_jax.cli.command import run_cli
from vit_jax.data import tokenizers
from vit_jax.data.source import Text, UnreadableImage
from vit_jax.data.transforms.preprocess import parse
from vit_jax.types import UserError

WORDS = [
    "a photo of a cat",
    "Schrödinger's dog",
    "naïve café",
    "北京的猫",
    "Привет, мир",
    "İstanbul ΣΑΣ",
    "🙂🏳️‍🌈",
    "e\u0301",
    "'ll don't",
]


def strings(count, seed=0):
    """Strings of words, punctuation, entities, emoji and other planes of Unicode; one in ten is long."""
    rng = random.Random(seed)
    letters = [
        *"abcXYZ0129 \t!?.,;:'\"&<>()[]{}#@",
        *"äßçñøşğıљжשةकญ漢字ひカ한",
        *"😀👩‍🚀🇫🇷❤️",
        "&amp;",
        "&lt;",
        "  ",
        "\u00a0",
        "\u200b",
        "▁",
    ]
    made = []
    for i in range(count):
        length = rng.randint(100, 300) if i % 10 == 0 else rng.randint(1, 30)
        made.append("".join(rng.choice(letters) for _ in range(length)) + " " + rng.choice(WORDS))
    return made


def merges(path=None):
    """A file of CLIP's kind, with merges that were trained here."""
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE(end_of_word_suffix="</w>"))
    made.pre_tokenizer = library.pre_tokenizers.Sequence(
        [library.pre_tokenizers.Whitespace(), library.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=900, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text.lower() for text in strings(300, 1) + WORDS * 20], trainer)
    pairs = json.loads(made.to_str())["model"]["merges"]
    return "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in pairs)


def test_clip_tokenizes_as_transformers_does_after_its_cleaning():
    pytest.importorskip("ftfy")
    made = tokenizers.from_merges(merges())
    model = json.loads(made.model)["model"]
    theirs = transformers.CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    for text in strings(1000):
        clean = tokenizers._clip_text(text)
        assert [*made.before, *made.ids(text), *made.after] == theirs(clean)["input_ids"], text


def test_clip_tokenizes_as_open_clip_does():
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("open_clip_torch is not installed")
    # Its package imports torchvision, its tokenizer alone does not.
    spec = importlib.util.spec_from_file_location("clip_tokenizer", Path(found.origin).parent / "tokenizer.py")
    open_clip = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(open_clip)
    theirs, made = open_clip.SimpleTokenizer(), tokenizers.read(open_clip.default_bpe())
    assert made.vocab_size == 49408
    for text in [*strings(1000), *WORDS]:
        np.testing.assert_array_equal(made(text, 77)[0], theirs([text], 77)[0].numpy(), err_msg=text)


def test_siglips_rule_is_that_of_transformers(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([t.lower() for t in strings(400, 2) + WORDS * 30]), model_writer=model, vocab_size=400,
        pad_id=-1, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    path = tmp_path / "spiece.model"
    path.write_bytes(model.getvalue())
    theirs, made = transformers.SiglipTokenizer(str(path)), tokenizers.read(str(tmp_path))
    for text in [*strings(1000), *WORDS]:
        expected = theirs([text], padding="max_length", max_length=64, truncation=True)["input_ids"][0]
        np.testing.assert_array_equal(made(text, 64)[0], expected, err_msg=text)


def test_siglip_2s_tokenizer_is_that_of_transformers(tmp_path):
    library = pytest.importorskip("tokenizers")
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = library.trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *alphabet], show_progress=False
    )  # fmt: skip
    made = library.Tokenizer(library.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = library.normalizers.Replace(" ", "▁")
    made.pre_tokenizer = library.pre_tokenizers.Split(" ", "merged_with_previous")
    made.train_from_iterator([t.lower() for t in WORDS * 20], trainer)
    model = json.loads(made.to_str())["model"]
    theirs = transformers.Siglip2Tokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    theirs.backend_tokenizer.post_processor = library.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    theirs.save_pretrained(tmp_path)
    ours = tokenizers.read(str(tmp_path))
    theirs.padding_side = "right"
    for text in [*strings(1000), *WORDS]:
        expected = theirs([text], padding="max_length", max_length=64, truncation=True)["input_ids"][0]
        np.testing.assert_array_equal(ours(text, 64)[0], expected, err_msg=text)


def test_siglip_2s_fixed_resolutions_have_its_rule_too(tmp_path):
    """Their folders say siglip and another tokenizer; texts are lower-cased, and end in <eos> without <bos>."""
    library = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "cat": 4}
    made = library.Tokenizer(library.models.WordLevel(words, unk_token="<unk>"))
    made.post_processor = library.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>"}')
    assert tokenizers.read(str(tmp_path))("Cat", 4)[0].tolist() == [2, 3, 0, 0]
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert tokenizers.read(str(tmp_path))("Cat", 4)[0].tolist() == [4, 1, 0, 0]


def test_a_packed_tokenizer_gives_the_same_ids(tmp_path):
    made = tokenizers.train(WORDS * 5, 300)
    (tmp_path / "tokenizer.json").write_text(made.packed())
    read = tokenizers.read(str(tmp_path))
    assert read == made
    assert read.digest == made.digest
    for text in strings(50):
        assert read.ids(text) == made.ids(text)
        assert max(made.ids(text)) < made.vocab_size


def test_a_text_ends_in_its_end_token_also_where_it_is_cut():
    made = tokenizers.train(WORDS, 300)
    ids, cut = made("a photo of a cat " * 30, 8)
    assert cut
    assert ids[0] == 1
    assert ids[-1] == 2
    short, cut = made("a", 8)
    assert not cut
    assert list(short[-3:]) == [0, 0, 0]


def test_cut_captions_are_counted(tmp_path, caplog):
    file = tmp_path / "tok.json"
    file.write_text(tokenizers.train(WORDS, 300).packed())
    transform = parse(f"tokenize({str(file)!r}, 4)", {"text": Text()})
    for _ in range(12):
        transform({"text": "a photo of a cat"}, np.random.default_rng(0))
    assert [record.args[2:] for record in caplog.records] == [(1, 1), (10, 10)]


@pytest.mark.parametrize("caption", ["", "  \n", None, 3, ["a", ""], []])
def test_a_caption_that_is_no_text_makes_its_example_unreadable(tmp_path, caption):
    file = tmp_path / "tok.json"
    file.write_text(tokenizers.train(WORDS, 300).packed())
    with pytest.raises(UnreadableImage, match="its caption is"):
        parse(f"tokenize({str(file)!r}, 4)", {"text": Text()})({"text": caption}, np.random.default_rng(0))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b'{"vit_jax_tokenizer": 1}', b"\x80\x04N.", b"not a model", b'{"version": "1.0", "model": {}}'],
)
def test_what_is_no_tokenizer_is_refused_with_its_path(tmp_path, content):
    if content in (b"\x80\x04N.", b"not a model", b""):
        pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        tokenizers.read(str(tmp_path / "tokenizer.json"))


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[text\]'"):
        tokenizers.library("a_library_that_nobody_has")


def test_a_damaged_gz_is_refused(tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(UserError, match="no tokenizer that can be read"):
        tokenizers.read(str(path))


def test_the_command_wants_one_origin(tmp_path, capsys):
    assert run_cli(dispatch, ["tokenizer", f"--out={tmp_path / 'x.json'}"]) == 2
    assert "one of --data" in capsys.readouterr().err
