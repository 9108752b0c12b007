"""Parse compiled HLO text for collectives and memory traffic."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable
from typing import Any

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2}  # other dtype names contain their number of bits
SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)(?:e\w+)?\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ((?:\(.*?\)|[^ (]+)(?:\{[^}]*\})?) ([\w\-]+)\((.*)$")
TILE = re.compile(r"T\(([\d,]+)\)")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{\}\)")
INDEX = re.compile(r"\bindex=(\d+)")
SLICES = ("dynamic-slice", "slice", "gather")
# A slice of their output reads only a slice of their input.
ELEMENTWISE = ("bitcast", "convert", "copy", "pad", "reshape", "transpose")
# No memory traffic of their own.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; `size` is its output in bytes, `in_memory` the part of it in main memory, with padding."""

    name: str
    kind: str
    size: float
    in_memory: float
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """The names of the computations it calls."""
        branches = [name.lstrip("%") for found in BRANCHES.findall(self.rest) for name in found.split(", ")]
        return CALLED.findall(self.rest) + branches


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in a step: their number, bytes of their arrays, and bytes sent per device."""

    kind: str
    count: int
    size: float
    sent: float


def size_of(shape: str) -> tuple[float, float]:
    """Return the bytes of a shape or tuple of shapes, and the bytes it occupies in main memory (memory space 0).

    In memory, arrays are padded to whole tiles of their minor dimensions.
    """
    total = in_memory = 0.0
    for kind, dims_text, layout in SHAPE.findall(shape):
        itemsize = BYTES.get(kind) or int(re.sub(r"\D", "", kind)) / 8
        dims = [int(dim) for dim in dims_text.split(",") if dim]
        total += itemsize * math.prod(dims)
        if "S(" not in layout:
            in_memory += itemsize * math.prod(_padded(dims, layout))
    return total, in_memory


def _padded(dims: list[int], layout: str) -> list[int]:
    """Return the padded dimensions of an array, from minor to major."""
    order = re.match(r"\{([\d,]+)", layout)
    stored = [dims[int(axis)] for axis in order[1].split(",")] if order else dims[::-1]
    tile = TILE.search(layout)
    for axis, edge in enumerate(reversed(tile[1].split(",")) if tile else ()):
        if axis < len(stored):
            stored[axis] = -(-stored[axis] // int(edge)) * int(edge)
    return stored


def planned_memory(compiled: Any) -> int | None:
    """Return the bytes per device of a compiled function's inputs, outputs and temporaries, or None if unknown."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return total - analysis.alias_size_in_bytes


class HloModule:
    """The computations of a compiled program, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        computation: Computation = {}
        for line in text.splitlines():
            if line.startswith(("%", "ENTRY")) and line.endswith("{"):
                name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0].split("(")[0]
                computation = self.computations[name] = {}
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif match := INSTRUCTION.match(line):
                root, name, shape, kind, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
                computation[name] = Instruction(name, kind, *size_of(shape), operands, rest, bool(root))

    def collectives(self, devices: int) -> list[Traffic]:
        """Return the collectives by kind; collectives in a loop count once per iteration.

        Bytes sent assume ring algorithms: each of n devices sends (n - 1) / n of an array to gather, scatter or transpose it,
        and twice that to all-reduce it. TPU compilers write a reduce-scatter as an all-reduce of which only a slice is kept.
        """
        found: dict[str, Traffic] = {}
        for instruction, times in self._collectives():
            kind = instruction.kind.removesuffix("-start")
            # The output of most -start instructions includes the operands.
            size = instruction.size
            if instruction.kind.endswith("-start") and kind != "all-reduce":
                size = max(size - self._input_size(instruction), size / 2)
            n = _group_size(instruction.rest, devices)
            if kind == "reduce-scatter":
                size *= n
            elif kind == "all-reduce" and self._is_scattered(instruction):
                kind = "reduce-scatter"
            fraction = 1.0 if kind == "collective-permute" else (2.0 if kind == "all-reduce" else 1.0) * (n - 1) / n
            old = found.get(kind, Traffic(kind, 0, 0.0, 0.0))
            found[kind] = Traffic(kind, old.count + times, old.size + times * size, old.sent + times * size * fraction)
        return sorted(found.values(), key=lambda traffic: -traffic.sent)

    def kernels(self) -> int:
        """Count calls of custom kernels, which have unknown memory traffic."""
        return sum(
            times for one, times in self._walk(self.entry, 1) if "tpu_custom_call" in one.rest or "cudnn" in one.rest
        )

    def memory_traffic(self, loops: bool = True) -> float:
        """Estimate the bytes read from and written to main memory from the sizes of inputs and outputs.

        Loop bodies count once per iteration, or once with loops=False. Other memory spaces, such as VMEM, do not count.
        """
        walk = self._walk(self.entry, 1, into_fusions=False)
        return math.fsum(self._traffic(one) * (times if loops else 1) for one, times in walk)

    def _walk(self, name: str, times: int, into_fusions: bool = True) -> Iterable[tuple[Instruction, int]]:
        """Yield the instructions of a computation and of all computations it calls, with their number of executions."""
        for instruction in self.computations.get(name, {}).values():
            yield instruction, times
            if instruction.kind in ("while", "conditional", "call", "async-start") or (
                into_fusions and instruction.kind == "fusion"
            ):
                trips = self._trip_count(instruction) if instruction.kind == "while" else 1
                for called in instruction.called:
                    yield from self._walk(called, times * trips, into_fusions)

    def _trip_count(self, loop: Instruction) -> int:
        """Return the iterations of a while loop, 1 if unknown.

        Without the compiler's annotation, a loop with a single comparison with one constant counts up to it from 0.
        """
        if known := TRIP_COUNT.search(loop.rest):
            return int(known[1])
        match = CONDITION.search(loop.rest)
        condition = [one for one, _ in self._walk(match[1], 1)] if match else []
        constants = [
            int(found[1]) for one in condition if one.kind == "constant" and (found := re.match(r"(\d+)\)", one.rest))
        ]
        compares = [one for one in condition if one.kind == "compare"]
        return constants[0] if len(constants) == len(compares) == 1 and "direction=LT" in compares[0].rest else 1

    def _collectives(self) -> Iterable[tuple[Instruction, int]]:
        """Yield the collectives with their number of executions.

        TPU compilers split one over several fusions, between other work; these all contain the whole collective.
        """
        split = set()
        for outer, times in self._walk(self.entry, 1, into_fusions=False):
            inner = self._walk(outer.called[0], 1) if outer.kind == "fusion" and outer.called else [(outer, 1)]
            for one, _ in inner:
                if one.kind.removesuffix("-start") not in COLLECTIVES:
                    continue
                if one is not outer and (channel := CHANNEL.search(one.rest)):
                    key = channel[1], id(self._computation_of[id(outer)])
                    if key in split:
                        continue
                    split.add(key)
                yield one, times

    def _is_scattered(self, reduced: Instruction) -> bool:
        """Return whether its computation returns only a slice of a reduced array."""
        roots = [one for one in self._computation_of[id(reduced)].values() if one.is_root]
        return all(root.kind == "dynamic-slice" and root.operands[0] == reduced.name for root in roots)

    def _input_size(self, instruction: Instruction) -> float:
        computation = self._computation_of[id(instruction)]
        return math.fsum(computation[name].size for name in instruction.operands if name in computation)

    @functools.cached_property
    def _computation_of(self) -> dict[int, Computation]:
        return {id(one): computation for computation in self.computations.values() for one in computation.values()}

    def _traffic(self, instruction: Instruction) -> float:
        """Return the bytes that an instruction reads and writes; slices and updates count only the part they access."""
        if instruction.kind in FREE or instruction.kind.endswith("-start"):
            return 0.0
        if instruction.kind.endswith("-done"):  # a prefetch into faster memory, or back
            return instruction.size
        computation = self._computation_of[id(instruction)]
        sizes = [computation[name].in_memory if name in computation else 0.0 for name in instruction.operands]
        if instruction.kind in SLICES:
            return 2.0 * instruction.in_memory
        if instruction.kind == "dynamic-update-slice":
            return 2.0 * sizes[1]
        if instruction.kind != "fusion" or not instruction.called:
            return math.fsum(sizes) + instruction.in_memory
        fused = self._fused(instruction)
        outputs, parameters = _outputs(fused), _parameters(fused)
        passed = _passed_on(instruction, fused)
        unread = {parameters[operand].name for operand in passed.values()}
        read = [
            0.0 if one.name in unread and not _is_used(one, fused) else min(size, self._read(one, fused))
            for one, size in zip(parameters, sizes, strict=False)
        ]
        unwritten = [one.in_memory if i in passed else self._unwritten(one, fused) for i, one in enumerate(outputs)]
        return math.fsum(read) + instruction.in_memory - math.fsum(unwritten)

    def _read(self, value: Instruction, fused: Computation, in_place: bool = True) -> float:
        """Return the bytes of a value that a fusion reads: the slices if it is only sliced, 0 if it is only updated.

        in_place: whether the output of the computation may share memory with its input.
        """
        users = [one for one in fused.values() if value.name in one.operands]
        read = 0.0
        for one in users:
            is_first = one.operands[0] == value.name
            is_aliased = in_place and _is_parameter(value, fused) and _is_output(one, fused)
            if one.kind in SLICES and is_first:
                read += one.in_memory
            elif one.kind in ELEMENTWISE:
                scale = value.size / one.size if one.kind == "convert" and one.size else 1.0
                read += self._read(one, fused, in_place) * scale
            elif one.kind == "dynamic-update-slice" and is_first and is_aliased:
                pass
            elif one.kind == "fusion" and (inner := self._fused(one)):
                positions = [i for i, name in enumerate(one.operands) if name == value.name]
                read += math.fsum(self._read(_parameters(inner)[i], inner, is_aliased) for i in positions)
            else:
                return math.inf
        return read if users else math.inf

    def _unwritten(self, output: Instruction, fused: Computation) -> float:
        """Return the bytes of a fusion's output that are not written because it updates part of an input in place."""
        while output.kind == "bitcast":
            output = fused[output.operands[0]]
        index = None
        if output.kind == "get-tuple-element" and (found := INDEX.search(output.rest)):
            index, output = int(found[1]), fused[output.operands[0]]
        if output.kind == "fusion":
            inner = self._fused(output)
            outputs = _outputs(inner) if index is None else _outputs(inner)[index : index + 1]
            return math.fsum(self._unwritten(one, inner) for one in outputs)
        if output.kind == "dynamic-update-slice" and _is_parameter(fused[output.operands[0]], fused):
            return output.in_memory - fused[output.operands[1]].in_memory
        return 0.0

    def _fused(self, fusion: Instruction) -> Computation:
        """Return the computation of a fusion, {} if the text does not contain it."""
        return self.computations.get(fusion.called[0], {}) if fusion.called else {}


def _outputs(computation: Computation) -> list[Instruction]:
    """Return the root of a computation, or the elements of its root tuple."""
    roots = [one for one in computation.values() if one.is_root]
    return [computation[name] for root in roots for name in (root.operands if root.kind == "tuple" else (root.name,))]


def _passed_on(fusion: Instruction, fused: Computation) -> dict[int, int]:
    """Return the outputs of a part of a split collective that are the memory of an operand: {output: operand}.

    The arrays of the collective pass through all its parts; the first one writes them.
    """
    if not any(one.kind in COLLECTIVES and CHANNEL.search(one.rest) for one in fused.values()):
        return {}
    outputs, parameters = _outputs(fused), _parameters(fused)
    _, _, aliases = fusion.rest.partition("output_to_operand_aliasing=")
    found = {int(i or 0): int(operand) for i, operand in ALIAS.findall(aliases.partition("calls=")[0])}
    return {i: k for i, k in found.items() if i < len(outputs) and outputs[i].size == parameters[k].size}


def _is_used(value: Instruction, computation: Computation) -> bool:
    """Return whether an instruction other than the final tuple or marker of the computation uses a value."""
    users = [one for one in computation.values() if value.name in one.operands]
    return any(not (one.is_root and one.kind in ("tuple", "custom-call")) for one in users)


def _is_parameter(value: Instruction, computation: Computation) -> bool:
    """Return whether a value shares memory with an input."""
    while value.kind == "bitcast":
        value = computation[value.operands[0]]
    return value.kind == "parameter"


def _is_output(value: Instruction, computation: Computation) -> bool:
    """Return whether a value is only used as an output of the computation."""
    users = [one for one in computation.values() if value.name in one.operands]
    kinds = ("bitcast", "tuple", "get-tuple-element")
    return all(one.kind in kinds and _is_output(one, computation) for one in users) and (value.is_root or bool(users))


def _parameters(computation: Computation) -> list[Instruction]:
    """Return the parameters of a computation in order."""
    parameters = [one for one in computation.values() if one.kind == "parameter"]
    return sorted(parameters, key=lambda one: int(one.rest.split(")")[0]))


def _group_size(rest: str, devices: int) -> int:
    """Return the number of devices in a replica group."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(match[1].split(","))
    return devices
