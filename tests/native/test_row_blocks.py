"""Response-only networks in token space with rows in registers: blocks run on the host against the reference."""

import ctypes
from dataclasses import replace

import pytest
import torch

from memformer_kernels.testing import Case
from tests.memformer_kernels.cases import make_case, seeded
from tests.native.block_calls import BACKWARD, COMPILER, FORWARD, LOSS_BACKWARD, compile_blocks
from tests.native.gradients import check_gradients, check_ragged, check_spoilt_task, loss_and_gradients, serves

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_blocks,
    pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_blocks("token_rows", tmp_path_factory.mktemp("blocks"))


def row_case(**changes: object) -> Case:
    sizes = {"structure": "response-only", "granularity": "full", "heads": 1, "tasks": 21, "tokens": 21, "layers": 4}
    return make_case(**{"width": 6, **sizes, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_every_depth(library: ctypes.CDLL, layers: int) -> None:
    """Units of four tasks, the last with one."""
    check_gradients(library.token_rows, row_case(layers=layers), order=layers)


@pytest.mark.parametrize("width", range(3, 10))
def test_every_width(library: ctypes.CDLL, width: int) -> None:
    check_gradients(library.token_rows, row_case(width=width), order=width)


@pytest.mark.parametrize("width", range(3, 8))
def test_many_tasks(library: ctypes.CDLL, width: int) -> None:
    """Fewer lanes have a task."""
    check_gradients(library.token_rows, row_case(width=width, tasks=4224, tokens=8, layers=2))


def test_few_rows_and_rows_between_the_context_and_several_queries(library: ctypes.CDLL) -> None:
    check_gradients(library.token_rows, row_case(tokens=12, context=7, queries=3), order=1)
    check_gradients(library.token_rows, row_case(tokens=21, context=19, queries=2))


def test_many_units(library: ctypes.CDLL) -> None:
    """More than a block of 1024 tasks, and units of more tasks than a warp has at once."""
    check_gradients(library.token_rows, row_case(tasks=1100, tokens=4, layers=2))
    check_gradients(library.token_rows, row_case(tasks=16_900, tokens=3, layers=1))


def test_ragged_contexts(library: ctypes.CDLL) -> None:
    lengths = torch.randint(1, 21, (21,), generator=seeded(3))
    check_ragged(library.token_rows, row_case(context=lengths))


def test_a_task_of_nan_spoils_no_other(library: ctypes.CDLL) -> None:
    check_spoilt_task(library.token_rows, row_case())


def test_half_precision_and_strides(library: ctypes.CDLL) -> None:
    case = row_case()
    check_gradients(
        library.token_rows, replace(case, z=case.z.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_())
    )
    halves = case.z.detach().bfloat16()
    found = [loss_and_gradients(library.token_rows, case, given) for given in (halves, halves.float())]
    assert all(map(torch.equal, *found))


def test_bits_do_not_depend_on_the_order_of_threads(library: ctypes.CDLL) -> None:
    case = row_case(tasks=70)
    first, *rest = (loss_and_gradients(library.token_rows, case, case.z.detach().float(), order) for order in (0, 1, 7))
    for other in rest:
        assert all(map(torch.equal, first, other))


def test_which_calls_it_serves(library: ctypes.CDLL) -> None:
    """Gradients of parameters alone, of one register with a gamma for every token, and few rows and layers."""

    def served(which: int = LOSS_BACKWARD, wants_z: bool = False, stack: bool = False, **sizes: object) -> bool:
        return serves(library.token_rows_fits, row_case(**sizes), which, wants_z, stack)

    assert served()
    assert served(BACKWARD)
    assert not served(FORWARD)
    assert not served(wants_z=True)
    assert not served(BACKWARD, stack=True)
    assert served(heads=2)  # gamma knows no heads: their sum is one
    assert not served(layers=5)
    assert served(tokens=25)
    assert not served(tokens=26)
    assert not served(tokens=17, context=8, queries=9)
    assert served(width=9)
    assert not served(width=10)
    assert not served(granularity="scalar")
    assert not served(rule="recursive")
