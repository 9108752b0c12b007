import jax
import jax.numpy as jnp
import pytest

from vit_jax.perf.hlo import HloModule, size_of

TEXT = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]{1,0:T(4,8)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[4,8]{1,0:T(4,8)} get-tuple-element(%arg), index=1
  %reduced = f32[4,8]{1,0:T(4,8)} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %reduced)
}

%condition (arg: (s32[], f32[4,8])) -> pred[] {
  %arg.1 = (s32[], f32[4,8]) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: f32[4,8], k: bf16[16]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %k = bf16[16]{0} parameter(1)
  %near = f32[4,8]{1,0:T(4,8)S(1)} negate(%x.1)
  %zero = s32[] constant(0)
  %both = (s32[], f32[4,8]{1,0}) tuple(%zero, %near)
  %loop = (s32[], f32[4,8]{1,0}) while(%both), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %start = (bf16[16]{0}, bf16[128]{0}) all-gather-start(%k), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %gathered = bf16[128]{0} all-gather-done(%start)
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_in_a_loop_count_once_per_iteration():
    reduced, gathered = HloModule(TEXT).collectives(8)
    assert (reduced.kind, reduced.count, reduced.size) == ("all-reduce", 12, 12 * 128)
    assert reduced.sent == 12 * 128 * 2 * 3 / 4  # in groups of four
    assert (gathered.kind, gathered.count, gathered.size) == ("all-gather", 1, 256)
    assert gathered.sent == 256 * 7 / 8


def test_an_all_reduce_of_which_a_slice_is_kept_counts_as_a_reduce_scatter():
    text = """%all-reduce-scatter (x: f32[32,8]) -> f32[4,8] {
  %x = f32[32,8]{1,0} parameter(0)
  %reduced = f32[32,8]{1,0} all-reduce(%x), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[4,8]{1,0} dynamic-slice(%reduced, %zero, %zero), dynamic_slice_sizes={4,8}
}

ENTRY %main (y: f32[32,8]) -> f32[4,8] {
  %y = f32[32,8]{1,0} parameter(0)
  ROOT %scattered = f32[4,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter
}
"""
    (found,) = HloModule(text).collectives(8)
    assert (found.kind, found.count, found.size, found.sent) == ("reduce-scatter", 1, 1024, 1024 * 7 / 8)


# A gather that begins, goes on beside other work, and ends.
SPLIT = """%begin (x.0: f32[4,8]) -> (f32[4,8], f32[32,8]) {
  %x.0 = f32[4,8]{1,0} parameter(0)
  %gather.0 = f32[32,8]{1,0} all-gather(%x.0), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %begun = (f32[4,8]{1,0}, f32[32,8]{1,0}) custom-call(%gather.0), custom_call_target="begin"
}

%go_on (x.1: f32[4,8], to.1: f32[32,8], y.1: f32[16,8]) -> (f32[16,8], f32[4,8], f32[32,8], f32[32,8]) {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %to.1 = f32[32,8]{1,0} parameter(1)
  %y.1 = f32[16,8]{1,0} parameter(2)
  %gather.1 = f32[32,8]{1,0} all-gather(%x.1), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  %work = f32[16,8]{1,0} negate(%y.1)
  ROOT %all = (f32[16,8]{1,0}, f32[4,8]{1,0}, f32[32,8]{1,0}, f32[32,8]{1,0}) tuple(%work, %x.1, %gather.1, %to.1)
}

%end (x.2: f32[4,8], to.2: f32[32,8]) -> f32[32,8] {
  %x.2 = f32[4,8]{1,0} parameter(0)
  %to.2 = f32[32,8]{1,0} parameter(1)
  %gather.2 = f32[32,8]{1,0} all-gather(%x.2), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %ended = f32[32,8]{1,0} custom-call(%x.2, %to.2, %gather.2), custom_call_target="end"
}

ENTRY %main (x: f32[4,8], y: f32[16,8]) -> f32[32,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %y = f32[16,8]{1,0} parameter(1)
  %first = (f32[4,8]{1,0}, f32[32,8]{1,0}) fusion(%x), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%begin
  %x.3 = f32[4,8]{1,0} get-tuple-element(%first), index=0
  %to.3 = f32[32,8]{1,0} get-tuple-element(%first), index=1
  %next = (f32[16,8]{1,0}, f32[4,8]{1,0}, f32[32,8]{1,0}, f32[32,8]{1,0}) fusion(%x.3, %to.3, %y), kind=kCustom, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {})}, calls=%go_on
  %x.4 = f32[4,8]{1,0} get-tuple-element(%next), index=1
  %to.4 = f32[32,8]{1,0} get-tuple-element(%next), index=2
  ROOT %last = f32[32,8]{1,0} fusion(%x.4, %to.4), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%end
}
"""


def test_a_collective_that_is_split_over_fusions_counts_once():
    (found,) = HloModule(SPLIT).collectives(8)
    assert (found.kind, found.count, found.size) == ("all-gather", 1, 1024)
    other = SPLIT.replace(
        "gather.2 = f32[32,8]{1,0} all-gather(%x.2), channel_id=5",
        "gather.2 = f32[32,8]{1,0} all-gather(%x.2), channel_id=6",
    )
    assert HloModule(other).collectives(8)[0].count == 2


def test_what_passes_through_a_split_collective_is_neither_read_nor_written():
    begin, other_work = 128 + 128 + 1024, 512 + 512
    assert HloModule(SPLIT).memory_traffic() == begin + (128 + other_work) + 128  # each part reads the source


def test_the_trip_count_is_inferred_from_the_condition():
    condition = """%condition (arg: (s32[], f32[4,8])) -> pred[] {
  %arg.1 = (s32[], f32[4,8]) parameter(0)
  %count = s32[] get-tuple-element(%arg.1), index=0
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%count, %bound), direction=LT
}"""
    begin, end = TEXT.index("%condition ("), TEXT.index("ENTRY")
    text = (TEXT[:begin] + condition + "\n\n" + TEXT[end:]).replace(
        ', backend_config={"known_trip_count":{"n":"12"}}', ""
    )
    assert HloModule(text).collectives(8) == HloModule(TEXT).collectives(8)
    unknown = TEXT.replace(', backend_config={"known_trip_count":{"n":"12"}}', "")
    assert HloModule(unknown).collectives(8)[0].count == 1


def test_other_memory_spaces_do_not_count():
    # The all-reduce reads and writes 128 bytes each time; negate reads 128 and writes none; the gathered 256 arrive.
    program = HloModule(TEXT)
    assert program.memory_traffic() == 12 * 256 + 128 + 256
    assert program.memory_traffic(loops=False) == 256 + 128 + 256


@pytest.mark.parametrize("length", [1, 7])
def test_the_body_of_a_real_scan_accesses_its_slices(length):
    def function(stacked, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stacked)[0]

    size = 4 * 64 * 64
    shapes = jax.ShapeDtypeStruct((length, 64, 64), "float32"), jax.ShapeDtypeStruct((64, 64), "float32")
    moved = HloModule(jax.jit(function).lower(*shapes).compile().as_text()).memory_traffic()
    assert 3 * length * size <= moved <= 3 * length * size + 6 * length * size


def test_arrays_in_memory_are_padded_to_tiles_of_their_minor_dimensions():
    assert size_of("bf16[3,196,64]{2,1,0:T(8,128)(2,1)}") == (3 * 196 * 64 * 2, 3 * 200 * 128 * 2)
    assert size_of("f32[64,3]{0,1:T(8,128)}") == (64 * 3 * 4, 8 * 128 * 4)
    assert size_of("(f32[5]{0:T(128)S(1)}, s8[2,130]{1,0})") == (20 + 260, 260)


FUSED = """%fused (p0: f32[10,64,64], p1: f32[10,64,64], p2: s32[]) -> f32[10,64,64] {
  %p0 = f32[10,64,64]{2,1,0} parameter(0)
  %p1 = f32[10,64,64]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %flat = f32[10,4096]{1,0} bitcast(%p1)
  %row = f32[1,4096]{1,0} dynamic-slice(%flat, %p2, %p2), dynamic_slice_sizes={1,4096}
  %made = f32[1,64,64]{2,1,0} bitcast(%row)
  ROOT %out = f32[10,64,64]{2,1,0} dynamic-update-slice(%p0, %made, %p2, %p2, %p2)
}

ENTRY %main (x: f32[10,64,64], y: f32[10,64,64], i: s32[]) -> f32[10,64,64] {
  %x = f32[10,64,64]{2,1,0} parameter(0)
  %y = f32[10,64,64]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %done = f32[10,64,64]{2,1,0} fusion(%x, %y, %i), kind=kLoop, calls=%fused
}
"""


def test_a_fused_in_place_update_accesses_its_slice_twice():
    assert HloModule(FUSED).memory_traffic() == 2 * 4 * 64 * 64 + 4  # and the index


def nested(root, text=FUSED):
    """A program whose fusion is nested in another fusion that ends with `root`."""
    outer = f"""%outer (a: f32[10,64,64], b: f32[10,64,64], c: s32[]) -> f32[10,64,64] {{
  %a = f32[10,64,64]{{2,1,0}} parameter(0)
  %b = f32[10,64,64]{{2,1,0}} parameter(1)
  %c = s32[] parameter(2)
  %inner = f32[10,64,64]{{2,1,0}} fusion(%a, %b, %c), kind=kLoop, calls=%fused
  ROOT %same = f32[10,64,64]{{2,1,0}} {root}
}}

"""
    return HloModule(outer + text.replace("kind=kLoop, calls=%fused", "kind=kLoop, calls=%outer"))


WHOLE, PART = 4 * 10 * 64 * 64, 4 * 64 * 64


def test_a_nested_fusion_counts_like_the_fusion_alone():
    assert nested("bitcast(%inner)").memory_traffic() == HloModule(FUSED).memory_traffic()


def test_an_update_used_elsewhere_accesses_the_whole_array():
    assert nested("negate(%inner)").memory_traffic() == 2 * WHOLE + PART + 4


SEVERAL = FUSED.replace("ROOT %out", "%out").replace(
    "%p2, %p2, %p2)", "%p2, %p2, %p2)\n  ROOT %all = (f32[10,64,64]{2,1,0}, s32[]) tuple(%out, %p2)"
)


def test_one_of_several_outputs_may_be_updated_in_place():
    text = SEVERAL.replace(
        "ROOT %done = f32[10,64,64]{2,1,0} fusion", "ROOT %done = (f32[10,64,64]{2,1,0}, s32[]) fusion"
    )
    assert HloModule(text).memory_traffic() == 2 * PART + 8


def test_one_of_several_outputs_of_a_nested_fusion_may_be_updated_in_place():
    assert nested("get-tuple-element(%inner), index=0", SEVERAL).memory_traffic() == HloModule(FUSED).memory_traffic()


def test_a_slice_of_a_padded_array_counts_as_a_slice():
    padded = FUSED.replace("bitcast(%p1)", "pad(%p1, %p2), padding=0_0x0_1x0_0")
    assert HloModule(padded).memory_traffic() == HloModule(FUSED).memory_traffic()


def test_an_array_that_is_converted_is_not_updated_in_place():
    half = FUSED.replace("%p0 = f32", "%p0 = bf16").replace("%x = f32", "%x = bf16")
    half = half.replace("dynamic-update-slice(%p0", "dynamic-update-slice(%wide")
    half = half.replace("  %flat", "  %wide = f32[10,64,64]{2,1,0} convert(%p0)\n  %flat")
    assert HloModule(half).memory_traffic() == WHOLE / 2 + PART + 4 + WHOLE


def test_a_slice_that_is_converted_is_read_in_its_own_dtype():
    half = (
        FUSED.replace("%p1 = f32", "%p1 = bf16")
        .replace("%y = f32", "%y = bf16")
        .replace("bitcast(%p1)", "convert(%p1)")
    )
    assert HloModule(half).memory_traffic() == PART / 2 + PART + 4


def test_dtypes_below_one_byte_are_parsed():
    assert HloModule("ENTRY %m () -> s4[8] {\n  ROOT %x = s4[8]{0} iota(), iota_dimension=0\n}").memory_traffic() == 4


def test_a_program_for_one_device_has_no_collectives():
    program = HloModule(jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile().as_text())
    assert program.collectives(1) == []
