"""Which releases of Triton and which GPUs the Triton backend serves, and how: the one table of what is known good.

A compiler that is wrong says nothing. The table therefore names what has been compiled and read, and the instructions
that products are made of there; what it does not name is refused, with a reason. `docs/triton.md` has the faults of
Triton that it goes around, with their sources, and what is asserted on compiled code.
"""

from typing import NamedTuple

OLDEST, NEWEST = (3, 6), (3, 8)
"""Releases of Triton, both included: every kernel compiles with them, and what is asserted on compiled code holds."""


class Generation(NamedTuple):
    """GPUs of one major compute capability.

    products: the instruction that products of tiles become. compiled_as: ten times the compute capability whose
    instructions kernels are compiled to, or None for the GPU's own.
    """

    name: str
    products: str
    compiled_as: int | None = None


GENERATIONS = {
    8: Generation("Ampere and Ada", "mma.sync"),
    9: Generation("Hopper", "wgmma"),
    # Made by Triton for tcgen05, products whose sums are carried through a loop have given wrong numbers in each of the
    # releases above. Instructions of 8.0 run here too.
    10: Generation("Blackwell in data centres", "mma.sync", compiled_as=80),
    12: Generation("Blackwell in workstations", "mma.sync"),
}
"""By major compute capability."""


def release_fault(version: str) -> str | None:
    """Why a release of Triton, as its distribution numbers it, is not served; None where it is."""
    numbers = version.split(".")[:2]
    if not all(number.isdigit() for number in numbers) or len(numbers) < 2:
        return f"triton {version} is no release, and what has been checked are {_released()}"
    release = int(numbers[0]), int(numbers[1])
    wanted = f"pip install 'triton>={_written(OLDEST)},<{_written((NEWEST[0], NEWEST[1] + 1))}'"
    if release < OLDEST:
        return f"triton {version} is too old: {wanted}"
    if release > NEWEST:
        return f"triton {version} is newer than what has been checked, {_released()}: {wanted}"
    return None


def gpu_fault(major: int, minor: int) -> str | None:
    """Why a GPU of this compute capability is not served; None where it is."""
    if major in GENERATIONS:
        return None
    served = ", ".join(f"{number}.x" for number in GENERATIONS)
    return (
        f"a GPU of compute capability {major}.{minor}, and the Triton kernels have been checked for {served}: "
        "backend='auto' serves it too"
    )


def _released() -> str:
    return f"{_written(OLDEST)} to {_written(NEWEST)}"


def _written(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
