"""Every recipe with captions, or with images of any shape, builds a step; commands of the guide are in tests/test_docs.py."""

import jax
import numpy as np
import pytest

from tests.conftest import ROOT, sampled
from tests.words import toy
from vit_jax.config import factory, schema
from vit_jax.config.load import load
from vit_jax.train import settings
from vit_jax.train.build import build_data, build_parts

PAIRS = "data=pairs:{place}/pairs.jsonl,tokenizer={place}/tok.json"
ARGUMENTS = {
    "siglip": PAIRS,
    "clip": PAIRS,
    "clip of the paper's size": f"{PAIRS},size=B/16,tokens=77",
    "lit": f"{PAIRS},model=mu/16,width=32",
    "lit with features": f"{PAIRS},model=mu/16,width=32,features={{place}}/features.npy",
    "cappa": PAIRS,
    "naflex": "data=folder:{place}/photos",
    "flexivit": "data=folder:{place}/photos",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    table = toy.write_pairs(folder)
    toy.write_tokenizer(folder)
    np.save(folder / "features.npy", np.zeros((len(table.read_text().splitlines()), 32), np.float32))
    for split in ("train", "test"):
        for colour in toy.COLOURS:
            target = folder / "photos" / split / colour
            target.mkdir(parents=True)
            for file in folder.glob(f"{colour}_*.png"):
                (target / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", sampled(ARGUMENTS, *[*ARGUMENTS][::2]))
def test_every_recipe_builds_its_step(place, name):
    config = load(f"{ROOT / 'configs' / name.partition(' ')[0]}.py:{ARGUMENTS[name].format(place=place)}").to_dict()
    config["batch_size"] = 8
    source = factory.build(config["data"]["source"], "data.source")
    _, facts = settings.load_init(config.get("init"), None)
    filled = schema.check(settings.fill_in(schema.check(config), facts, source))
    data = build_data(filled, source)
    parts = build_parts(filled, data.spec, data)
    assert all(x.size for x in jax.tree.leaves(parts.shapes.params))
    if "paper" in name:
        assert sum(x.size for x in jax.tree.leaves(parts.shapes.params)) > 8e7
