"""Context Gram matrices with one task a thread: blocks run on the host, thread by thread."""

import ctypes

import pytest
import torch
from torch import Tensor

from memformer_kernels.testing import relative_error
from tests.memformer_kernels.cases import normal, seeded
from tests.native.block_calls import COMPILER, compile_blocks, gram_numbers, send

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_blocks,
    pytest.mark.skipif(COMPILER is None, reason="no g++ to build the host blocks with"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_blocks("context_gram", tmp_path_factory.mktemp("blocks"))


def made(
    library: ctypes.CDLL, z: Tensor, context: int | Tensor, matrix: Tensor | None = None, order: int = 0
) -> Tensor:
    to = torch.full((z.shape[0], z.shape[2], z.shape[2]), torch.nan) if matrix is None else matrix
    send(library.thread_context, gram_numbers(z, context, to), False, order)
    return to


def expected(z: Tensor, context: int | Tensor) -> Tensor:
    rows = torch.arange(z.shape[1])
    labelled = rows < context if isinstance(context, int) else rows < context[:, None]
    kept = torch.where(labelled.expand(z.shape[:2])[..., None], z.double(), 0.0)
    return kept.mT @ kept


@pytest.mark.parametrize("width", range(2, 10))
def test_every_width(library: ctypes.CDLL, width: int) -> None:
    """Tiles of a block after each other, the last with three tasks."""
    z = normal(seeded(width), 131, 9, width).float()
    assert relative_error(made(library, z, 7, order=width), expected(z, 7)) < 1e-6


def test_long_and_ragged_contexts(library: ctypes.CDLL) -> None:
    """Blocks of 32 rows are added pairwise; what lies behind a context may be NaN."""
    z, lengths = normal(seeded(1), 33, 101, 3).float(), torch.randint(1, 101, (33,), generator=seeded(2))
    behind = torch.arange(101) >= lengths[:, None]
    assert (
        relative_error(made(library, z.masked_fill(behind[..., None], torch.nan), lengths), expected(z, lengths)) < 1e-6
    )


def test_strides_and_half_precision(library: ctypes.CDLL) -> None:
    z = normal(seeded(1), 35, 9, 6).float()
    apart, matrix = z.repeat_interleave(2, -1)[..., ::2], torch.full((35, 6, 12), torch.nan)[..., ::2]
    assert relative_error(made(library, apart, 8, matrix), expected(z, 8)) < 1e-6
    assert relative_error(made(library, z.bfloat16(), 8), expected(z.bfloat16().float(), 8)) < 1e-6


def test_a_task_of_nan_spoils_no_other(library: ctypes.CDLL) -> None:
    z = normal(seeded(1), 35, 9, 5).float()
    z[7] = torch.nan
    assert made(library, z, 8).isnan().flatten(1).any(1).nonzero().tolist() == [[7]]


def test_which_calls_it_serves(library: ctypes.CDLL) -> None:
    """Matrices of many tasks of few rows."""

    def served(tasks: int = 4224, tokens: int = 21, width: int = 6, *, backward: bool = False) -> bool:
        z, matrix = torch.empty(tasks, tokens, width), torch.empty(tasks, width, width)
        numbers = gram_numbers(z, tokens - 1, matrix, z if backward else None)
        return bool(library.thread_context_fits((ctypes.c_int64 * len(numbers))(*numbers)))

    assert served()
    assert not served(tasks=4223)
    assert not served(tokens=65)
    assert not served(width=10)
    assert not served(backward=True)
