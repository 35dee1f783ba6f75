"""How the CUDA library's kernels copy tokens, where blocks end, and traces that do not fit in shared memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_predict
from memformer_kernels.testing import float64_violations, public
from tests.gpu.calls import assert_losses, with_target
from tests.gpu.gpus import ALGORITHMS, STRUCTURES, Gpu
from tests.marks import slow_but
from tests.memformer_kernels.cases import make_case


def views(z: Tensor) -> dict[str, Tensor]:
    """The same tokens, lying differently in memory, with NaN between them."""
    tasks, tokens, width = z.shape
    wide = z.new_full((tasks, tokens + 1, width + 3), torch.nan)
    wide[:, :tokens, 2 : width + 2] = z
    shifted = z.new_full((z.numel() + 1,), torch.nan)
    shifted[1:] = z.flatten()
    gapped = z.new_full((tasks, tokens + 1, width), torch.nan)
    gapped[:, :tokens] = z
    return {
        "slice": wide[:, :tokens, 2 : width + 2],
        "unaligned": shifted[1:].view(tasks, tokens, width),
        "gaps between tasks": gapped[:, :tokens],
        "transposed": z.transpose(0, 2).contiguous().transpose(0, 2),
        "backwards strides": z.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("structure", slow_but(("response-only",), ("response-only", "block")))
@pytest.mark.parametrize(("tokens", "width"), slow_but(((21, 6),), ((21, 6), (8, 4), (9, 5))))
def test_every_way_of_copying_brings_the_same_bits(
    tokens: int, width: int, structure: str, dtype: torch.dtype, gpu: Gpu
) -> None:
    """Tiles that are copied together, with padding between tasks, and of an odd number of numbers."""
    sizes = {"tasks": 37, "tokens": tokens, "width": width, "layers": 2, "heads": 1}
    case = gpu.moved(make_case(structure=structure, **sizes)).to(torch.float32)
    z, parameters = case.z.detach().to(dtype), (case.q, *case.parameters)
    plain = memformer_predict(z, *parameters, backend="cuda", algorithm="gram")
    for name, view in views(z).items():
        assert torch.equal(memformer_predict(view, *parameters, backend="cuda", algorithm="gram"), plain), name


TAILS = (1, 31, 33, 1023, 1024, 1025, 2500)


@pytest.mark.parametrize("structure", slow_but(("response-only",), STRUCTURES))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tasks", slow_but((33,), TAILS))
def test_batches_that_end_within_a_block(tasks: int, algorithm: str, structure: str, gpu: Gpu) -> None:
    """A tile, a unit, a block of 1024 tasks: sums over tasks are right whatever is left."""
    case = make_case(structure=structure, width=4, tokens=4, layers=2, heads=1, tasks=tasks)
    assert_losses(gpu.moved(with_target(case, 1)), "cuda", algorithm)


DEEP: dict[str, tuple[str, dict[str, Any]]] = {
    "traces": ("gram", {"structure": "response-only", "rule": "recursive", "width": 6, "layers": 24, "heads": 4}),
    "gram": ("gram", {"width": 16, "tokens": 60, "layers": 30, "heads": 1}),
    "tokens": ("token", {"granularity": "full", "width": 16, "tokens": 128, "layers": 8, "heads": 1}),
    "response": (
        "token",
        {"structure": "response-only", "granularity": "full", "width": 16, "tokens": 128, "layers": 8, "heads": 1},
    ),
}
"""Networks whose cells lie in global memory, by what does not fit in shared memory."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_what_does_not_fit_in_shared_memory(name: str, gpu: Gpu) -> None:
    algorithm, sizes = DEEP[name]
    case = make_case(tasks=gpu.size(70, 3), **{"tokens": 4, **sizes})
    case = gpu.moved(with_target(replace(case, z=case.z / 4), 1))
    assert_losses(case, "cuda", algorithm)
    assert float64_violations(public("cuda", algorithm), case) == {}
