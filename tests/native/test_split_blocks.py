"""Response-only networks of 9 to 16 features with four lanes to a task: blocks run on the host."""

import ctypes

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
    return compile_blocks("split_gram", tmp_path_factory.mktemp("blocks"))


def split_case(**changes: object) -> Case:
    sizes = {"structure": "response-only", "granularity": "scalar", "heads": 1, "tasks": 21, "tokens": 9, "layers": 3}
    return make_case(**{"width": 13, **sizes, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("width", range(10, 18))
def test_every_width(library: ctypes.CDLL, width: int, dtype: torch.dtype) -> None:
    check_gradients(library.split_gram, split_case(width=width), width, dtype)


@pytest.mark.parametrize("rule", ["linear", "cgd", "recursive", "lfom_shared", "lfom_residual"])
def test_rules(library: ctypes.CDLL, rule: str) -> None:
    check_gradients(library.split_gram, split_case(rule=rule), 1)


def test_many_units_and_several_queries(library: ctypes.CDLL) -> None:
    check_gradients(library.split_gram, split_case(tasks=1100, tokens=12, context=7, queries=3, layers=2))
    check_gradients(library.split_gram, split_case(tasks=16_900, tokens=3, layers=1, width=10))


def test_ragged_contexts(library: ctypes.CDLL) -> None:
    lengths = torch.randint(1, 9, (21,), generator=seeded(3))
    check_ragged(library.split_gram, split_case(context=lengths))


def test_a_task_of_nan_spoils_no_other(library: ctypes.CDLL) -> None:
    check_spoilt_task(library.split_gram, split_case())


def test_bits_do_not_depend_on_the_order_of_threads(library: ctypes.CDLL) -> None:
    case = split_case(tasks=70)
    first, *rest = (loss_and_gradients(library.split_gram, case, case.z.detach().float(), order) for order in (0, 1, 7))
    for other in rest:
        assert all(map(torch.equal, first, other))


def test_which_calls_it_serves(library: ctypes.CDLL) -> None:
    """Gradients of parameters alone, of one register, from 9 features on."""

    def served(which: int = LOSS_BACKWARD, wants_z: bool = False, stack: bool = False, **sizes: object) -> bool:
        return serves(library.split_gram_fits, split_case(**sizes), which, wants_z, stack)

    assert served()
    assert served(BACKWARD)
    assert served(width=17)
    assert not served(width=9)
    assert not served(FORWARD)
    assert not served(wants_z=True)
    assert not served(BACKWARD, stack=True)
    assert not served(tokens=400)
