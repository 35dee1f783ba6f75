"""What a launch did, in numbers."""

from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Counters:
    """Counts, in the order of the machine's.

    An instruction counts once for each warp that runs it (`warp_instructions`), and once for each of its threads. Of
    the former, by class: `floating_point`, `integer`, `control` and `memory`. A request is one instruction of one warp
    that touches memory: it takes sectors of 32 bytes of global memory, of which `ideal` would hold the bytes asked
    for, or wavefronts of shared memory, of which one would do for each 128 bytes asked for.
    """

    warp_instructions: int = 0
    thread_instructions: int = 0
    global_requests: int = 0
    global_sectors: int = 0
    global_ideal_sectors: int = 0
    global_bytes_read: int = 0
    global_bytes_written: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    shared_ideal_wavefronts: int = 0
    barriers: int = 0
    tensor_operations: int = 0
    atomics: int = 0
    floating_point: int = 0
    integer: int = 0
    control: int = 0
    memory: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*(mine - its for mine, its in zip(astuple(self), astuple(other), strict=True)))


CLASSES = ("floating_point", "integer", "control", "memory")
COUNTED = tuple(field.name for field in fields(Counters) if field.name not in CLASSES)
"""The counters that the machine keeps, in its order."""

_MEMORY = ("ld", "st", "atom", "cp", "bulk", "ldmatrix", "stmatrix", "mbarrier", "fence")
_CONTROL = ("bra", "exit", "trap", "bar", "nop")
_FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f64", "f32x2", "tf32"}


def class_of(key: str) -> int:
    """The index among CLASSES of an instruction of the machine; moves and conversions are integer ones unless a type of
    theirs is a float's."""
    operation, *types = key.split(".")
    if operation in _MEMORY:
        return CLASSES.index("memory")
    if operation in _CONTROL:
        return CLASSES.index("control")
    return CLASSES.index("floating_point" if _FLOATS.intersection(types) else "integer")
