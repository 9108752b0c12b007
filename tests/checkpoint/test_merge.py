import re

import ml_dtypes
import numpy as np
import pytest

from vit_jax.checkpoint.transfer.merge import Entry, is_untrained_head, merge, report_lines, report_text
from vit_jax.checkpoint.transfer.patches import adapt_channels, resize_patch_embed, resize_posemb
from vit_jax.layers.posemb import sincos2d
from vit_jax.types import UserError

RNG = np.random.default_rng(0)
VIT = {"type": "vit.ViT", "pool": "tok", "posemb": "learn"}
ABC, XYZ = ("a", "b", "c"), ("x", "y", "z")
WIDTH = 8


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def network(grid=(2, 3), patch=4, channels=3, classes=3, tokens=("cls",), slots=True, rep=0, depth=1) -> dict:
    """The parameters of a small ViT; two registers where `tokens` has them."""
    lengths = {name: 2 if name == "registers" else 1 for name in tokens}
    params = {"embed/kernel": normal(patch, patch, channels, WIDTH), "embed/bias": normal(WIDTH)}
    params |= {name: normal(1, length, WIDTH) for name, length in lengths.items()}
    params["posemb/table"] = normal(1, grid[0] * grid[1] + slots * sum(lengths.values()), WIDTH)
    params |= {f"encoder/block_{i}/mlp/up/kernel": normal(WIDTH, 4) for i in range(depth)}
    params |= {"rep/kernel": normal(WIDTH, rep), "rep/bias": normal(rep)} if rep else {}
    heads = ("head", "head_dist") if "dist" in tokens else ("head",)
    for name in heads if classes else ():
        params |= {f"{name}/kernel": normal(rep or WIDTH, classes), f"{name}/bias": normal(classes)}
    return params


def put(source, like, **arguments):
    """Merges; the initial values of the model are the values of `like`."""
    given = {
        "source_model": VIT, "source_classes": None, "source_grid": (2, 3),
        "model": VIT, "classes": None, "grid": (2, 3),
    }  # fmt: skip
    return merge(source=source, like=like, fresh=like.__getitem__, **given | arguments)


def statuses(merged) -> dict[str, str]:
    return {entry.name: entry.status for entry in merged.report}


def differing(merged) -> dict[str, str]:
    return {name: status for name, status in statuses(merged).items() if status != "loaded"}


def embedded(params, patches) -> np.ndarray:
    """The tokens that the first block sees."""
    prefix = [params[name][0] for name in ("cls", "dist", "registers") if name in params]
    table = params["posemb/table"][0]
    if len(table) == len(patches):
        return np.concatenate([*prefix, patches + table])
    return np.concatenate([*prefix, patches]) + table


def test_equal_shapes_are_loaded():
    source, like = network(), network()
    merged = put(source, like)
    assert not differing(merged)
    assert merged.params.keys() == like.keys()
    for name in like:
        np.testing.assert_array_equal(merged.params[name], source[name])


def test_every_parameter_of_both_sides_has_one_entry():
    source, like = network(rep=5, classes=7), network(grid=(4, 4), tokens=("cls", "registers"))
    merged = put(source, like, grid=(4, 4), allow="registers")
    assert sorted(e.name for e in merged.report) == sorted(source.keys() | like.keys())
    assert merged.params.keys() == like.keys()
    assert {name: value.shape for name, value in merged.params.items()} == {name: v.shape for name, v in like.items()}


def test_values_take_the_kind_of_the_model():
    source = {name: value.astype(ml_dtypes.bfloat16) for name, value in network().items()}
    like = {name: value.astype(np.float16) for name, value in network(grid=(4, 4)).items()}
    merged = put(source, like, grid=(4, 4))
    assert {value.dtype for value in merged.params.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("grid", [(4, 5), (3, 2)])  # the second has as many patches
def test_position_embeddings_of_another_grid_are_resized(grid, method):
    source = network()
    merged = put(source, network(grid=grid), grid=grid, posemb=method)
    assert differing(merged) == {"posemb/table": "resized"}
    expected = resize_posemb(source["posemb/table"], (2, 3), grid, 1, method)
    np.testing.assert_array_equal(merged.params["posemb/table"], expected)


def test_slots_are_matched_by_token():
    source, like = network(tokens=("cls", "registers")), network(tokens=("cls", "dist", "registers"))
    merged = put(source, like, allow="dist")
    old, new = source["posemb/table"][0], merged.params["posemb/table"][0]
    np.testing.assert_array_equal(new[[0, 2, 3]], old[:3])
    np.testing.assert_array_equal(new[1], np.zeros(WIDTH))
    np.testing.assert_array_equal(new[4:], old[3:])
    assert differing(merged) == {
        "dist": "missing", "posemb/table": "resized", "head_dist/kernel": "missing", "head_dist/bias": "missing",
    }  # fmt: skip


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("tokens", [("cls",), ("cls", "dist"), ("cls", "registers"), ("registers",)])
def test_tokens_with_and_without_slots_are_the_same_network(tokens, slots):
    source, like = network(tokens=tokens, slots=slots), network(tokens=tokens, slots=not slots)
    merged = put(source, like)
    patches = normal(6, WIDTH)
    np.testing.assert_allclose(embedded(merged.params, patches), embedded(source, patches), atol=1e-6)
    assert differing(merged) == {"posemb/table": "resized"}


@pytest.mark.parametrize("grid", [(2, 3), (4, 4)])
def test_a_learned_table_begins_from_fixed_embeddings(grid):
    source, like = network(), network(grid=grid)
    del source["posemb/table"]
    merged = put(source, like, source_model=VIT | {"posemb": "sincos2d"}, grid=grid)
    fixed = np.concatenate([np.zeros((1, WIDTH), np.float32), sincos2d(2, 3, WIDTH)])[None]
    np.testing.assert_array_equal(merged.params["posemb/table"], resize_posemb(fixed, (2, 3), grid, 1, "bilinear"))
    assert differing(merged) == {"posemb/table": "resized"}


def test_a_table_without_a_known_grid_is_loaded_only_unresized():
    source = network()
    assert not differing(put(source, network(), source_grid=None, grid=None))
    with pytest.raises(UserError, match=r"posemb/table is \(1, 7, 8\), here \(1, 17, 8\)"):
        put(source, network(grid=(4, 4)), source_grid=None, grid=None)


def test_patches_and_channels_are_adapted_together():
    source = network()
    merged = put(source, network(patch=6, channels=1))
    expected = adapt_channels(resize_patch_embed(source["embed/kernel"], (6, 6)), 1)
    np.testing.assert_allclose(merged.params["embed/kernel"], expected, atol=1e-6)
    assert differing(merged) == {"embed/kernel": "resized"}


def test_a_stem_adapts_to_channels_but_its_patches_do_not():
    stem = {"stem/root/kernel": normal(7, 7, 3, 4)}
    source = network(patch=1) | stem
    merged = put(source, network(patch=2) | {"stem/root/kernel": normal(7, 7, 1, 4)})
    np.testing.assert_array_equal(merged.params["stem/root/kernel"], stem["stem/root/kernel"].sum(2, keepdims=True))
    assert differing(merged) == {"embed/kernel": "resized", "stem/root/kernel": "resized"}
    with pytest.raises(UserError, match="embed/kernel"):
        put(source, network(patch=1, channels=5) | stem)


def test_a_mixer_of_another_grid_is_refused():
    mixing = "encoder/block_0/tokens/up/kernel"
    with pytest.raises(
        UserError, match=r"only at the image size it was trained at: it mixes 2x3 patches, found 3x2 here"
    ):
        put({mixing: normal(6, 4)}, {mixing: normal(6, 4)}, grid=(3, 2), allow=".")


def test_keep_loads_the_head_of_the_same_classes():
    source = network()
    merged = put(source, network(), source_classes=ABC, classes=ABC, head="keep")
    np.testing.assert_array_equal(merged.params["head/kernel"], source["head/kernel"])


@pytest.mark.parametrize(
    ("source", "like", "names", "message"),
    [
        (network(), network(classes=4), (None, None), "3 classes in the pretrained model and 4 here"),
        (network(), network(), (ABC, ("a", "c", "b")), "2 of 3 classes differ: class 1 is 'b' there and 'c' here"),
        (network(classes=0), network(), (None, ABC), "the pretrained model has none"),
        (network(rep=8), network(), (ABC, ABC), "one of 8 in the pretrained model and none here"),
        (network(), network(), (("a",), ABC), "pretrained model names 1 classes; its head has 3"),
    ],
)
def test_keep_refuses_a_head_of_other_classes_or_none(source, like, names, message):
    with pytest.raises(UserError, match=message):
        put(source, like, source_classes=names[0], classes=names[1], head="keep")


def test_reset_begins_anew_and_keeps_a_representation_of_the_same_shape():
    source, like = network(rep=5, tokens=("cls", "dist")), network(rep=5, tokens=("cls", "dist"))
    merged = put(source, like, head="reset")
    heads = {"head/kernel", "head/bias", "head_dist/kernel", "head_dist/bias"}
    assert differing(merged) == dict.fromkeys(heads, "reset")
    for name in heads:
        np.testing.assert_array_equal(merged.params[name], like[name])


def test_a_representation_that_is_not_here_is_left_over():
    merged = put(network(rep=5), network(), head="reset")
    assert differing(merged) == {
        "head/kernel": "reset", "head/bias": "reset", "rep/kernel": "left over", "rep/bias": "left over",
    }  # fmt: skip


def test_a_model_without_classes_leaves_the_head():
    merged = put(network(), network(classes=0))
    assert differing(merged) == {"head/kernel": "left over", "head/bias": "left over"}


def test_map_copies_the_classes_of_the_same_name():
    source, like = network(classes=5), network(classes=3)
    merged = put(
        source, like, source_classes=("b", "twice", "c", "a", "twice"), classes=("a", "b", "twice"), head="map"
    )
    for name in ("head/kernel", "head/bias"):
        np.testing.assert_array_equal(merged.params[name][..., :2], source[name][..., [3, 0]])
        np.testing.assert_array_equal(merged.params[name][..., 2], like[name][..., 2])
    assert Entry("head/kernel", "loaded", "2 of 3 classes by name") in merged.report


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((None, ABC), "the pretrained model has none"),
        ((ABC, None), "the data has none"),
        ((ABC, XYZ), "no class has the same name: 'a'"),
    ],
)
def test_map_needs_names_in_common(names, message):
    with pytest.raises(UserError, match=message):
        put(network(), network(), source_classes=names[0], classes=names[1], head="map")


@pytest.mark.parametrize(
    ("names", "classes", "status", "why"),
    [
        ((ABC, ABC), 3, "loaded", "auto: the same 3 classes"),
        ((None, ABC), 3, "loaded", "auto: 3 classes on both sides, whose names are not all known"),
        ((ABC, ("c", "a", "b")), 3, "loaded", "auto: the same classes in another order, 3 of 3 classes by name"),
        (
            (ABC, ("a", "y", "z")),
            3,
            "reset",
            "auto: other classes (3 classes in the pretrained model, 3 here, 1 names in common)",
        ),
        ((None, None), 4, "reset", "auto: 3 classes in the pretrained model, 4 here"),
    ],
)
def test_auto_keeps_or_maps_the_same_classes_and_else_resets(names, classes, status, why):
    merged = put(network(), network(classes=classes), source_classes=names[0], classes=names[1])
    assert Entry("head/kernel", status, why) in merged.report


def test_auto_resets_a_head_that_read_another_layer():
    merged = put(network(rep=8), network(), source_classes=ABC, classes=ABC)
    assert statuses(merged)["head/kernel"] == "reset"


def test_what_does_not_fit_is_listed_with_shapes_and_differing_fields():
    source, like = network(depth=2), network()
    del source["cls"]
    source["embed/bias"] = normal(9)
    with pytest.raises(UserError) as error:
        put(source, like, source_model=VIT | {"depth": 2}, model=VIT | {"depth": 1, "dropout": 0.1})
    assert "missing in the pretrained model: cls (1, 1, 8)" in str(error.value)
    assert "left over: encoder/block_1/mlp/up/kernel (8, 4)" in str(error.value)
    assert "shape: embed/bias is (9,), here (8,)" in str(error.value)
    assert "The models differ in depth (2, here 1)." in str(error.value)


def test_at_most_fifteen_are_listed():
    with pytest.raises(UserError) as error:
        put(network(depth=30), network())
    assert len(re.findall("left over", str(error.value))) == 15
    assert "... and 14 more" in str(error.value)


def test_what_allow_finds_begins_anew_or_is_left_out():
    source, like = network(depth=2), network()
    del source["cls"]
    source["posemb/table"] = source["posemb/table"][:, 1:]
    source["embed/bias"] = normal(9)
    merged = put(source, like, allow="^cls$|^embed/bias|block_1/")
    assert differing(merged) == {
        "cls": "missing", "embed/bias": "reset", "posemb/table": "resized", "encoder/block_1/mlp/up/kernel": "left over",
    }  # fmt: skip
    np.testing.assert_array_equal(merged.params["embed/bias"], like["embed/bias"])
    with pytest.raises(UserError, match=r"init\.allow='\('"):
        put(source, like, allow="(")


def test_initial_values_are_asked_for_only_where_needed():
    def fresh(name):
        raise AssertionError(name)

    source = network()
    merged = merge(
        source=source, source_model=VIT, source_classes=ABC, source_grid=(2, 3),
        model=VIT, like=network(grid=(4, 4)), fresh=fresh, classes=ABC, grid=(4, 4),
    )  # fmt: skip
    assert differing(merged) == {"posemb/table": "resized"}


def test_fields_that_change_the_function_but_no_shape_are_noted():
    source_model = VIT | {"mlp": "gelu", "stride": [4, 4], "dropout": 0.0, "stem": {"weight_norm": "var"}}
    model = VIT | {"mlp": "gelu_tanh", "stride": (4, 4), "dropout": 0.1, "stem": {"weight_norm": "std"}}
    merged = put(network(), network(), source_model=source_model, model=model)
    assert merged.notes == (
        "model.mlp is 'gelu_tanh'; the pretrained model has 'gelu'.",
        "model.stem.weight_norm is 'std'; the pretrained model has 'var'.",
    )


def test_the_report_has_a_line_on_all_that_is_not_plainly_loaded():
    entries = [
        Entry("a", "loaded"),
        Entry("b", "loaded", "2 of 3 classes"),
        Entry("c", "left over"),
        Entry("d", "loaded"),
    ]
    assert report_lines(entries) == ["3 loaded, 1 left over", "  loaded    b: 2 of 3 classes", "  left over c"]
    assert report_text(entries).splitlines() == [
        "3 loaded, 1 left over", "loaded    a", "loaded    b: 2 of 3 classes", "left over c", "loaded    d",
    ]  # fmt: skip


def test_a_head_of_one_value_is_untrained():
    assert is_untrained_head({"head/kernel": np.zeros((4, 3))})
    assert not is_untrained_head({"head/kernel": normal(4, 3)})
    assert not is_untrained_head({})


def test_a_mask_token_may_be_missing_or_left_over():
    plain, masked = network(), network() | {"mask_token": normal(1, 1, WIDTH)}
    assert differing(put(plain, masked)) == {"mask_token": "missing"}
    np.testing.assert_array_equal(put(plain, masked).params["mask_token"], masked["mask_token"])
    assert differing(put(masked, plain)) == {"mask_token": "left over"}
