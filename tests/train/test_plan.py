"""Plans, for this machine's devices; for TPUs where their compiler is installed."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from tests.conftest import forked, sampled
from vit_jax import __main__ as commands
from vit_jax import chips
from vit_jax.cli import plan as plan_command
from vit_jax.config import load as config_file
from vit_jax.perf import plan as plans
from vit_jax.perf.stand_in import stand_in_config
from vit_jax.types import UserError

MODEL = "--config.model={'type': 'vit.ViT', 'width': 64, 'depth': 2, 'mlp_dim': 64, 'num_heads': 2, 'patch_size': 4}"
FLAGS = ["--config=configs/digits.py", MODEL, "--config.batch_size=16"]


def told(capsys, *flags):
    assert commands.main(["plan", *FLAGS, "--json", *flags]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_step_here_is_planned_without_running_it(capsys):
    (one,) = told(capsys)
    config, spec, _ = stand_in_config(config_file.load("configs/digits.py", []).to_dict())
    assert (spec.layout["image"].shape, config["batch_size"]) == ((20, 20, 1), 64)
    numbers = 2 * (4 * (64 * 64 + 64) + 2 * 64 * 64 + 2 * 64 + 4 * 64) + 16 * 64 + 64 + 26 * 64 + 64 + 128 + 650
    assert one["params"] == 4 * numbers
    assert one["optimizer"] == pytest.approx(2 * one["params"], rel=0.01)  # two moments, and counts
    assert one["peak"] > one["params"] + one["optimizer"]
    assert one["flops"] == one["model_flops"] > 0
    assert one["moved"] > one["params"]
    assert one["fits"] is one["seconds"] is None  # nothing is known of this CPU


def test_computing_again_costs_operations_and_no_more_of_the_model(capsys):
    (plain,), (again,) = told(capsys), told(capsys, "--config.model.remat=full")
    assert again["flops"] > plain["flops"]
    assert again["model_flops"] == plain["model_flops"]


def test_several_meshes_are_a_table(capsys):
    assert commands.main(["plan", *FLAGS, "--mesh=data=-1", "--mesh=fsdp=1"]) == 0
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert len(table) == 4
    assert table[0].startswith("| slice | mesh |")


@pytest.mark.parametrize(
    "fields", sampled([{}, {"scan": True}, {"scan": True, "remat": "inner"}], {"scan": True, "remat": "inner"}), ids=str
)
def test_fsdp_exchanges_the_parameters_and_not_the_activations(fields):
    model = {"type": "vit.ViT", "width": 256, "depth": 4, "mlp_dim": 256, "num_heads": 4, "patch_size": 2} | fields
    flags = [
        "--config=configs/digits.py",
        f"--config.model={model}",
        "--config.batch_size=64",
        "--mesh=fsdp=-1",
        "--json",
    ]
    one = json.loads(forked(["plan", *flags], devices=8).splitlines()[-1])
    parameters = 8 * one["params"]
    for traffic in one["traffic"]:
        assert traffic["size"] < 2.5 * parameters, traffic


def test_what_does_not_fit_is_told_with_changes_that_were_not_made_yet():
    config, spec, _ = stand_in_config(config_file.load("configs/digits.py", []).to_dict())
    one = plans.plan(config, spec, jax.devices())
    small = dataclasses.replace(
        one, chip=chips.Chip("small", 1e12, one.peak / 2, 1e11, 1e10), devices=8, params=one.peak
    )
    assert small.fits is False
    assert small.images_per_second == small.batch_size / max(small.times.values())
    changes = plans.remedies(small, config)
    assert changes[0][1] == {"mesh.data": 1, "mesh.fsdp": -1}
    assert changes[-1][1]["grad"]["microbatches"] == 8
    assert changes[-1][1]["model.remat"] == "full"
    divided = dataclasses.replace(small, mesh={"fsdp": 8})
    changed = plans.with_changes(config, {"model.remat": "full"})
    assert {key for _, change in plans.remedies(divided, changed) for key in change} == {"grad"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e", "v5e:4x8"),
        ("v7e:2x2", "did you mean"),
        ("gpu:8", "expected a generation"),
        ("v5e:2x2x2", "2 sides, not 3"),
        ("v5p:2x2", "3 sides, not 2"),
    ],
)
def test_unknown_slices_are_told(name, says):
    with pytest.raises(UserError, match=says):
        plans.devices_of(name)


class Refused:
    """A program that the compiler refuses."""

    def compile(self):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (34.82G) exceeds "
            "available HBM (15.75G)"
        )


def test_a_program_that_the_compiler_refuses_is_one_that_does_not_fit(capsys):
    facts = plans.program_facts(Refused(), 8, accelerator=True)
    assert facts["peak"] == 34.82 * 2**30
    config, spec, _ = stand_in_config(config_file.load("configs/digits.py", []).to_dict())
    one = plans.plan(config, spec, jax.devices())
    large = dataclasses.replace(one, chip=chips.CHIPS["TPU v5 lite"], **facts)
    assert large.fits is False
    assert large.times is large.images_per_second is None
    text = plan_command.as_text("v5e:2x4", large, {}, False) + plan_command.table([("v5e:2x4", large, {})])
    assert "DOES NOT FIT: 20.5 GB over" in text
    assert "| ? | ? |" in text


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the compiler is here")
def test_without_the_compiler_its_installation_is_told():
    with pytest.raises(UserError, match="pip install libtpu"):
        plans.devices_of("v5e:2x4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, 650 MB")
def test_a_step_is_compiled_for_a_slice_that_is_not_here(capsys):
    divided, copied = told(capsys, "--topology=v5e:2x4", "--mesh=fsdp=-1", "--mesh=data=-1", MODEL.replace("64", "256"))
    assert divided["devices"] == 8
    assert divided["params"] < copied["params"] / 7
    assert {one["kind"] for one in copied["traffic"]} >= {"all-reduce"}
    assert copied["fits"] is True


def test_an_axis_that_nothing_is_divided_over_is_told():
    with pytest.raises(UserError, match="unknown axis 'tensr'; did you mean tensor"):
        commands.dispatch(["plan", *FLAGS, "--mesh=tensr=2"])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.5997e9, "B", "2.6 GB"),
        (0.01789, "s", "17.9 ms"),
        (3.2e-7, "s", "0.32 µs"),
        (0.0, "B", "0 B"),
        (999.96e6, "B", "1 GB"),
        (1.5e15, "FLOP", "1.5 PFLOP"),
        (1500.0, "s", "1,500 s"),
        (float("nan"), "B", "unknown"),
        (999.0, "FLOP", "999 FLOP"),
    ],
)
def test_quantities_are_told_in_three_digits(value, unit, text):
    assert plan_command.with_unit(value, unit) == text
