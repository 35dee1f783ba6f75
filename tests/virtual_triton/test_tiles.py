"""Every width of every operation has its kernels run, as they are compiled for it, in float32 and in float64.

Networks in float32 are those of test_triton.py, which knows more forms of them to hold them to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_predict
from memformer_kernels.backends.triton import launch
from memformer_kernels.testing import FLOAT64_ERROR, GRADIENT_FACTOR, relative_error
from tests.virtual_triton import operations
from tests.virtual_triton.gpus import ARCHITECTURES, clean_gpu
from tests.virtual_triton.operations import with_gradients

pytestmark = [pytest.mark.compiled, pytest.mark.slow, pytest.mark.timeout(3600)]

_STEPS = (*(2**power for power in range(8)), 192)
WIDTHS = tuple(sorted({step + more for step in _STEPS for more in (-1, 0, 1)} - {0}))
"""Rules go by the next power of 2, of all features or of all but the response, or by parts of 64."""

TILES = (
    *("TASKS", "BLOCK", "PARTS", "PART", "ROWS", "COLUMNS", "CHUNK", "TILE", "ACC"),
    *("num_warps", "num_stages", "maxnreg"),
)
"""Constants that rules choose by the width, the dtype and the GPU."""


class Sized(NamedTuple):
    """An operation, and its tensors' shapes by a width."""

    call: Callable[[str, list[Tensor]], tuple[Tensor, ...]]
    shapes: Callable[[int], list[tuple[int, ...]]]


def _tokens(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    z, q, p = leaves
    return (memformer_predict(z, q, p, backend=backend, algorithm="token"),)


def _matrices(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    z, q, p = leaves
    return (memformer_predict(z, q, p, backend=backend, algorithm="gram"),)


def _responses(backend: str, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    z, q = leaves
    return tuple(memformer_predict(z, q, backend=backend, algorithm=algorithm) for algorithm in ("gram", "token"))


def _dense(width: int) -> list[tuple[int, ...]]:
    return [(3, 9, width), (2, 1, width, width), (2, 1, width, width)]


SIZED = {
    "Gram matrix": Sized(operations.gram, lambda d: [(3, 20, d)]),
    "layer": Sized(operations.layer, lambda d: [(3, 9, d), (1, d, d), (3, 1, 9, d), (2, 1, 1, d)]),
    "first-order method": Sized(operations.solve, lambda d: [(5, d, d), (5, d), (2, d, d), (2, 2, d), (2, d)]),
    "attention": Sized(operations.attention, lambda d: [(max(4, 64 // d), 40, 1, d)] * 3),
    "network on tokens": Sized(_tokens, _dense),
    "network by matrices": Sized(_matrices, _dense),
    "network of responses": Sized(_responses, lambda d: [(3, 9, d + 1), (2, 1, d, d)]),
}


CASES = [
    (name, dtype)
    for name in SIZED
    for dtype in (torch.float32, torch.float64)
    if dtype == torch.float64 or not name.startswith("network")
]


def _compiled(sized: Sized, width: int, dtype: torch.dtype) -> set[object]:
    """The kernels that a call launches and their tiles, launching nothing."""
    found: set[object] = set()

    def note(kernel: Any, _: int, arguments: dict[str, Any]) -> None:
        constants = {**arguments, **(arguments["C"]._asdict() if "C" in arguments else {})}
        found.add((kernel.__name__, *((name, str(constants[name])) for name in TILES if name in constants)))

    with launch.observed(note):
        with_gradients(sized.call, sized.shapes(width), dtype, "triton")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_every_width(name: str, dtype: torch.dtype, architecture: int) -> None:
    """Runs a width where its kernels are other ones than those of the widths before; no width is left out."""
    sized, ran = SIZED[name], set[object]()
    for width in WIDTHS:
        with clean_gpu(architecture):
            launched = _compiled(sized, width, dtype)
            if launched <= ran:
                continue
            ours = with_gradients(sized.call, sized.shapes(width), dtype, "triton")
        ran |= launched
        exact, twin = (
            with_gradients(sized.call, sized.shapes(width), kind, "torch") for kind in (torch.float64, dtype)
        )
        for made, plain, right in zip(ours, twin, exact, strict=True):
            budget = GRADIENT_FACTOR * max(relative_error(plain, right), torch.finfo(torch.float32).eps)
            assert relative_error(made, right) <= (FLOAT64_ERROR if dtype == torch.float64 else budget), width
    with clean_gpu(architecture):
        assert all(_compiled(sized, width, dtype) <= ran for width in range(1, 200))
