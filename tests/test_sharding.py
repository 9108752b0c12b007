import math
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vit_jax import sharding, trees
from vit_jax.models import fill
from vit_jax.models.vit import ViT
from vit_jax.optim import make_optimizer, rules, schedules
from vit_jax.tasks.classify import Classify
from vit_jax.train.state import initial_state
from vit_jax.types import UserError

SPEC = {"image": jax.ShapeDtypeStruct((224, 224, 3), "uint8")}


def mesh(**axes):
    """A mesh of devices that are not there."""
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def state(variant, rule=None, ema=True, **fields):
    spec = fill({"type": "vit.ViT", "variant": variant, "num_classes": 1000} | fields)
    task = Classify(ViT(**{key: value for key, value in spec.items() if key != "type"}))
    tx, _ = make_optimizer(rule or rules.adam(), schedules.constant(10), lr=0.1)
    return jax.eval_shape(lambda: initial_state(task, tx, SPEC, seed=0, ema=ema))


def numbers(tree, places):
    """Of the arrays of a state: how many numbers there are, and how many lie on each device."""
    each = jax.tree.map(lambda leaf, place: math.prod(place.shard_shape(leaf.shape)), tree, places)
    return sum(leaf.size for leaf in jax.tree.leaves(tree)), sum(jax.tree.leaves(each))


@pytest.mark.parametrize("rule", [rules.adam(), rules.muon(), rules.adafactor()], ids=["adam", "muon", "adafactor"])
@pytest.mark.parametrize("variant", ["L/16", "g/14"])
def test_fsdp_divides_the_state_by_the_devices(variant, rule):
    tree = state(variant, rule)
    total, each = numbers(tree, sharding.tree_sharding(tree, mesh(data=1, fsdp=8, tensor=1)))
    assert total / 8 <= each < 1.1 * total / 8


def test_pooled_images_and_logits_are_sharded_like_the_batch():
    """A compiler that shards them like the kernels gathers them again: for g/14 2 GB in each step."""
    model = ViT(num_classes=7, width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=4, pool="map")
    spec = {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")}
    task, key = Classify(model, spec=spec), jax.random.key(0)
    images = jnp.zeros((16, 8, 8, 3), jnp.uint8)
    params = jax.eval_shape(lambda: task.init(key, spec))
    with jax.sharding.use_abstract_mesh(mesh(data=1, fsdp=8, tensor=1)):
        program = str(jax.make_jaxpr(lambda params: task.train_outputs(params, {}, images, key)[0])(params))
    constrained = set(re.findall(r"f32\[([\d,]+)\] = sharding_constraint", program))
    assert {"16,1,8", "16,7"} <= constrained


def test_tensor_parallelism_divides_blocks_and_its_product_with_fsdp_the_rest():
    tree = state("L/16")
    total, each = numbers(tree, sharding.tree_sharding(tree, mesh(data=2, fsdp=1, tensor=4)))
    assert total / 4 < each < 1.1 * total / 4
    total, each = numbers(tree, sharding.tree_sharding(tree, mesh(data=1, fsdp=2, tensor=4)))
    assert total / 8 < each < 1.1 * total / 8


def test_data_parallelism_copies_everything():
    tree = state("Ti/16")
    places = sharding.tree_sharding(tree, mesh(data=8, fsdp=1, tensor=1))
    assert {place.spec for place in jax.tree.leaves(places)} == {PartitionSpec()}


def test_moments_and_averages_lie_as_their_parameters():
    tree = state("S/16")
    places = trees.flatten(sharding.tree_sharding(tree, mesh(data=1, fsdp=4, tensor=2)))
    for name, place in places.items():
        if name.startswith("params/"):
            leaf = name.removeprefix("params/")
            same = {other.spec for key, other in places.items() if key.endswith(f"/{leaf}")}
            assert same == {place.spec}, name


def test_a_rule_of_the_config_comes_first():
    tree = {"params": {"head": {"kernel": jnp.zeros((128, 64)), "bias": jnp.zeros(64)}}}
    places = sharding.tree_sharding(tree, mesh(data=1, fsdp=4), [("head/kernel$", (None, "fsdp"))])
    assert places["params"]["head"]["kernel"].spec == PartitionSpec(None, "fsdp")
    places = sharding.tree_sharding(tree, mesh(data=1, fsdp=4), [("kernel$", (None, None))])
    assert places["params"]["head"]["kernel"].spec == PartitionSpec(None, None)


def test_heads_that_tensor_parallelism_cannot_divide_are_told():
    with pytest.raises(UserError, match=r"mesh.tensor=4 cannot divide .*attn.*\(6, 64\).*heads"):
        sharding.tree_sharding(state("S/16"), mesh(data=2, tensor=4))


@pytest.mark.parametrize(
    ("platform", "axes", "gathers"),
    [("tpu", {"data": 1, "fsdp": 2}, True), ("tpu", {"data": 2}, False), ("cpu", {"data": 1, "fsdp": 2}, False)],
)
def test_parameters_are_gathered_whole_on_tpus_that_divide_them(platform, axes, gathers):
    devices = np.array([types.SimpleNamespace(platform=platform)] * 2)
    mesh = mock.create_autospec(jax.sharding.Mesh, instance=True, devices=devices, shape=axes)
    assert (sharding.compiler_options(mesh) is not None) == gathers
