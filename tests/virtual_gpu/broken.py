"""Kernels that are broken on purpose, next to what fixes them."""

from dataclasses import dataclass, field

# %d0: the address of this thread's element of argument 0; %d1: of argument 1.
ELEMENTS = "mul.wide.u32 %d9, %t, 4; add.s64 %d0, %a0, %d9; add.s64 %d1, %a1, %d9;\n"
SHARED = ".shared .align 16 .b8 tile[4096];\n"
# %r0: the offset of this thread's element of the tile.
OF_TILE = "shl.b32 %r0, %t, 2;\n mov.u32 %r1, tile; add.s32 %r0, %r0, %r1;\n"


@dataclass(frozen=True)
class Case:
    """A kernel's text with a hole: what is broken and what is right in it, and what is reported of the former."""

    name: str
    check: str
    text: str
    broken: str
    right: str
    options: dict[str, object] = field(default_factory=dict)
