"""Provide the names of ImageNet's classes, for models that only state their number.

synsets.tsv.xz has a line for every synset in the order of WordNet ids, which is also the order of the classes: id,
releases, words. Its source and licence are in the file LICENSE next to it.
"""

import functools
import lzma
from collections import Counter
from importlib import resources

# Number of classes -> release: ImageNet-1k; timm's 12k; 21k-P of fall 2011 and of winter 2021 (arXiv:2104.10972); 22k
# of fall 2011; and the 21k of Google's models, which has two more.
RELEASES = {1000: "k", 11821: "t", 11221: "m", 10450: "v", 21841: "w", 21843: "g"}


@functools.cache
def class_names(classes: int) -> tuple[str, ...] | None:
    """Return the class names of the release with this number of classes, or None if there is none.

    A name contains all words of its synset, "tench, Tinca tinca"; equal names are distinguished by their WordNet ids.
    """
    release = RELEASES.get(classes)
    if release is None:
        return None
    text = lzma.decompress(resources.files(__name__).joinpath("synsets.tsv.xz").read_bytes()).decode()
    synsets = [(wnid, words) for wnid, releases, words in map(_columns, text.splitlines()) if release in releases]
    times = Counter(words for _, words in synsets)
    return tuple(words if times[words] == 1 else f"{words} ({wnid})" for wnid, words in synsets)


def _columns(line: str) -> tuple[str, str, str]:
    wnid, releases, words = line.split("\t")
    return wnid, releases, words
