"""Retrieval and zero-shot classification against counts by hand."""

import numpy as np
import pytest

from tests.evals.fake import evaluate
from vit_jax.data.source import Field, Image, Source, Tokens
from vit_jax.evals.retrieval import Retrieval, ranks
from vit_jax.types import UserError


class Numbered(Source):
    """Images of one number, with the token ids of their captions."""

    def __init__(self, captions):
        self.captions = np.asarray(captions, np.int32)
        self.fields: dict[str, Field] = {"image": Image(), "text": Tokens()}

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        return {"image": np.full((1, 1, 3), index, np.uint8), "text": self.captions[index]}

    def name(self, index):
        return str(index)


def onehot(numbers, size=12):
    return np.eye(size, dtype=np.float32)[np.asarray(numbers) % size]


def model(batch):
    return {"image_embedding": onehot(batch["image"][:, 0, 0, 0]), "text_embedding": onehot(batch["text"][..., 0])}


def test_perfect_embeddings_find_everything_at_rank_one():
    found = evaluate(Retrieval(Numbered([[i] for i in range(12)]), "", batch_size=5), model)
    assert {value for key, value in found.items() if "@" in key} == {1.0}


def test_a_shift_by_one_finds_nothing_at_rank_one():
    found = evaluate(Retrieval(Numbered([[i + 1] for i in range(12)]), "", batch_size=5), model)
    assert found["image_to_text@1"] == found["text_to_image@1"] == 0.0


def test_any_of_several_captions_is_right():
    """Of image i the captions are i and 11 - i; both images of a caption are right for it."""
    found = evaluate(Retrieval(Numbered([[[i], [11 - i]] for i in range(12)]), "", batch_size=4), model)
    assert found["num_texts"] == 12
    assert found["image_to_text@1"] == found["text_to_image@1"] == 1.0


def test_equal_embeddings_find_nothing():
    def flat(batch):
        return {key: np.ones_like(x) for key, x in model(batch).items()}

    found = evaluate(Retrieval(Numbered([[i] for i in range(12)]), "", batch_size=5), flat)
    assert found["image_to_text@1"] == found["image_to_text@10"] == 0.0


def test_ranks_count_the_wrong_answers_that_are_nearer():
    rng = np.random.default_rng(0)
    queries, answers = rng.normal(size=(20, 4)), rng.normal(size=(15, 4))
    right = np.zeros((20, 15), bool)
    right[np.arange(20), rng.integers(0, 15, 20)] = True
    near = queries @ answers.T
    expected = [(near[i] > near[i][right[i]].max()).sum() for i in range(20)]
    np.testing.assert_array_equal(ranks(queries, answers, right), expected)


@pytest.mark.parametrize(
    ("content", "message"), [("", "expected one entry"), ("a photo\n", "contain {} for"), (None, "no readable file")]
)
def test_templates_that_are_none_are_refused(tmp_path, content, message):
    from vit_jax.data.sources.digits import Digits
    from vit_jax.evals.zeroshot import ZeroShot

    file = tmp_path / "templates.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        ZeroShot(Digits("test"), "", tokenize="", templates=str(file))


def test_names_for_another_number_of_classes_are_refused(tmp_path):
    from vit_jax.data.sources.digits import Digits
    from vit_jax.evals.zeroshot import ZeroShot

    (tmp_path / "names.txt").write_text("zero\none\n")
    with pytest.raises(UserError, match=r"2 names in classes=.*expected 10"):
        ZeroShot(Digits("test"), "", tokenize="", classes=str(tmp_path / "names.txt"))


def test_zeroshot_wants_classes():
    from vit_jax.evals.zeroshot import ZeroShot

    with pytest.raises(UserError, match="expected a source of classes"):
        ZeroShot(Numbered([[1]]), "", tokenize="")
