import numpy as np

from vit_jax.data.source import Cached, Spread
from vit_jax.data.sources.fake import Fake


class Counting(Fake):
    reads = 0

    def image(self, index):
        self.reads += 1
        return super().image(index)


def test_cache_reads_each_image_once():
    source = Counting(10, 8, num_classes=2)
    cached = Cached(source, 10 * 8 * 8 * 3)
    for _ in range(3):
        for index in range(10):
            np.testing.assert_array_equal(cached.image(index), Fake(10, 8, num_classes=2).image(index))
    assert source.reads == 10


def test_cache_stops_at_its_budget_and_keeps_the_first():
    source = Counting(10, 8)
    cached = Cached(source, 4 * 8 * 8 * 3 + 1)
    for _ in range(2):
        for index in range(10):
            cached.image(index)
    assert source.reads == 10 + 6


def test_cached_image_cannot_be_written():
    assert not Cached(Fake(1, 8), 10**6).image(0).flags.writeable


def test_cache_passes_on_labels_and_names():
    source = Fake(5, 8, num_classes=3)
    cached = Cached(source, 0)
    assert (len(cached), cached.class_names) == (5, source.class_names)
    assert [(cached.label(i), cached.name(i)) for i in range(5)] == [
        (source.label(i), source.name(i)) for i in range(5)
    ]


def test_some_examples_are_spread_over_the_whole():
    source = Fake(num_examples=10, image_size=4, num_classes=3)
    some = Spread(source, 4)
    assert [some.name(i) for i in range(len(some))] == [source.name(i) for i in (0, 2, 5, 7)]
    assert [some.label(i) for i in range(4)] == [source.label(i) for i in (0, 2, 5, 7)]
    assert len(Spread(source, 99)) == 10
