"""PTX's scalar types and state spaces."""

SIZES = {
    "pred": 0,
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64", "f32x2"), 8),
}
"""Bytes of a value in memory, and of a lane of a register of that type; predicates are one bit of a lane mask."""

SPACES = ("generic", "global", "shared", "local", "param", "const")
"""State spaces in the order of the machine's `Space`."""

SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW = 1 << 60, 2 << 60, 3 << 60
"""Where the windows of these spaces start in generic addresses. Global memory is the host's own addresses."""


class UnknownInstruction(Exception):
    """PTX that the machine does not execute; the message names the statement."""


def signed(kind: str) -> bool:
    return kind[0] == "s"


def is_float(kind: str) -> bool:
    return kind[0] == "f" or kind.startswith(("bf", "tf"))


def untyped(kind: str) -> str:
    """The unsigned type of the same size: for operations that only move bits, or where the sign makes no difference."""
    return f"u{8 * SIZES[kind]}"
