"""Turn captions into token ids."""

import logging

import numpy as np

from vit_jax.data import source, tokenizers
from vit_jax.data.source import Example, Fields, UnreadableImage
from vit_jax.types import Count, Units


class Tokenize:
    """Replace `text` by token ids, [length] or [captions, length].

    One of several captions is drawn; with `captions`, the first ones are kept, repeated if an image has fewer.
    """

    reads = ("text",)

    def __init__(self, name: str, length: int, captions: int | None):
        self.tokenizer, self.length, self._captions = tokenizers.read(name), length, captions
        self.tokenizer(" ", length)
        self._name, self._seen, self._cut = name, 0, 0

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of the result."""
        return {**fields, "text": source.Tokens(self.tokenizer.vocab_size)}

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Raise UnreadableImage for a caption that is empty or not text."""
        try:
            texts = tokenizers.checked(example["text"])
        except ValueError as error:
            raise UnreadableImage(str(error)) from None
        if self._captions is None:
            return {**example, "text": self.ids(texts[int(rng.integers(len(texts))) if len(texts) > 1 else 0])}
        return {**example, "text": np.stack([self.ids(texts[i % len(texts)]) for i in range(self._captions)])}

    def ids(self, text: str) -> np.ndarray:
        """Return the ids of a text; truncated texts are counted, and reported at 1, 10, 100 and so on."""
        ids, is_cut = self.tokenizer(text, self.length)
        self._seen, self._cut = self._seen + 1, self._cut + is_cut
        if is_cut and str(self._cut).strip("0") == "1":
            logging.getLogger("vit_jax").warning(
                "tokenize(%r, %d): %d of the %d captions so far were longer and are cut.", self._name, self.length, self._cut,
                self._seen,
            )  # fmt: skip
        return ids


def tokenize(name: str, length: Units, captions: Count | None = None) -> Tokenize:
    """Tokenize the caption into `length` ids with the tokenizer `name`: a file, or the folder of a model or a run.

    captions: keep that many per image, for retrieval; by default one is drawn.
    """
    return Tokenize(name, length, captions)
