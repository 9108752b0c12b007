import pytest

from tests.words import toy


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pairs.jsonl, its images, and a tokenizer of its captions."""
    folder = tmp_path_factory.mktemp("pairs")
    toy.write_pairs(folder)
    toy.write_tokenizer(folder)
    return folder
