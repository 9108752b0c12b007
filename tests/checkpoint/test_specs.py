import dataclasses

import pytest

from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.pretrained import specs


@pytest.mark.parametrize("kind", [ViT, Mixer, ResNet])
def test_the_defaults_that_formats_fill_in_are_those_of_the_model(kind):
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    filled = specs.DEFAULTS[f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"]
    assert filled == {name: defaults[name] for name in filled}
