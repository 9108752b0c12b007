import numpy as np
import pytest

from vit_jax.data.examples import Examples, layout_of
from vit_jax.data.source import Encoded, Spread, UnreadableImage, cut
from vit_jax.data.sources.fake import Fake


class Stored(Encoded):
    """An image of a `Counting` source."""

    def __init__(self, source, pixels):
        self._source, self._pixels = source, pixels

    def decode(self):
        self._source.decoded += 1
        return self._pixels

    def decode_part(self, draw):
        self._source.parts += 1
        return cut(self._pixels, draw(*self._pixels.shape[:2]))


class Counting(Fake):
    """Encoded images, with counts of how they are decoded."""

    decoded = parts = 0

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return example | {"image": Stored(self, example["image"])}


def test_cache_decodes_each_image_once():
    source = Counting(10, 8, num_classes=2)
    examples, plain = Examples(source, "", 10 * 8 * 8 * 3), Fake(10, 8, num_classes=2)
    for _ in range(3):
        for index in range(10):
            found = examples.read(index, 0, index)
            np.testing.assert_array_equal(found["image"], plain[index]["image"])
            assert found["label"] == plain[index]["label"]
    assert source.decoded == 10


def test_cache_stops_at_its_budget_and_keeps_the_first():
    source = Counting(10, 8)
    examples = Examples(source, "", 4 * 8 * 8 * 3 + 1)
    for _ in range(2):
        for index in range(10):
            examples.read(index, 0, index)
    assert source.decoded == 10 + 6


def test_a_cached_image_cannot_be_written():
    examples = Examples(Counting(1, 8), "", 10**6)
    assert not any(examples.read(0, 0, 0)["image"].flags.writeable for _ in range(2))


def test_a_part_is_decoded_alone_only_after_the_whole():
    source = Counting(3, 32)
    examples = Examples(source, "inception_crop(8)", 0)
    for position in range(4):
        examples.read(1, 0, position)
    assert (source.decoded, source.parts) == (1, 3)


def test_the_cache_does_not_change_what_is_read():
    def read(cache_bytes):
        examples = Examples(Counting(3, 32), "inception_crop(8)|flip", cache_bytes)
        return [examples.read(i, 0, position)["image"] for position in range(4) for i in range(3)]

    np.testing.assert_array_equal(read(0), read(10**6))


def test_damage_is_not_cached():
    class Damaged(Fake):
        def __getitem__(self, index):
            raise UnreadableImage("damaged")

    examples = Examples(Damaged(1, 8), "", 10**6)
    for _ in range(2):
        with pytest.raises(UnreadableImage):
            examples.read(0, 0, 0)


def test_the_layout_is_that_of_the_arrays():
    arrays = Examples(Fake(1, (6, 9), 2), "", 0).read(0, 0, 0)
    assert layout_of(arrays) == {"image": ((6, 9, 2), "uint8"), "label": ((), "int32")}


def test_some_examples_are_spread_over_the_whole():
    source = Fake(num_examples=10, image_size=4, num_classes=3)
    some = Spread(source, 4)
    assert some.fields == source.fields
    assert [some.name(i) for i in range(len(some))] == [source.name(i) for i in (0, 2, 5, 7)]
    assert [some[i]["label"] for i in range(4)] == [source[i]["label"] for i in (0, 2, 5, 7)]
    assert len(Spread(source, 99)) == 10
