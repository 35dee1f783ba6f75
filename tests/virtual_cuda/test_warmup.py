"""What `warmup` brings to a GPU: the kernels that the call would launch, and no run of one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.gpu.virtual_cuda.virtual import Virtual
from memformer_kernels import lfom_solve, memformer_layer, memformer_loss, memformer_predict, warmup
from tests.memformer_kernels.cases import make_case, normal, seeded

CASE = make_case(structure="response-only", width=4, tokens=7, tasks=3).to(torch.float32)
BLOCK = make_case(structure="block", width=4, tokens=7, tasks=3).to(torch.float32)
TARGET = torch.ones(3, 1)
H, B, A = (normal(seeded(), *shape).float().requires_grad_() for shape in ((3, 4, 4), (3, 4), (2, 4, 4)))

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "loss": (memformer_loss, (CASE.z, TARGET, CASE.q), {"gamma": CASE.gamma}),
    "token loss": (memformer_loss, (BLOCK.z, TARGET, BLOCK.q, BLOCK.p), {"algorithm": "token"}),
    "prediction": (memformer_predict, (BLOCK.z, BLOCK.q, BLOCK.p), {}),
    "layer": (memformer_layer, (BLOCK.z, torch.ones(1, 4, 4), torch.ones(1, 4, 4)), {"registers": []}),
    "method": (lfom_solve, (H, B, A), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_after_warmup_loads_nothing(virtual: Virtual, name: str) -> None:
    function, arguments, options = CALLS[name]
    virtual.runtime.loaded.clear()
    warmup(*arguments, **options, backend="cuda")
    assert virtual.runtime.launched == []
    assert all("was not written" in report.detail for report in virtual.take_reports())
    loaded = set(virtual.runtime.loaded)
    assert loaded
    made = function(*arguments, **options, backend="cuda")
    sum(x.sum() for x in (made if isinstance(made, tuple) else (made,))).backward()
    assert virtual.runtime.loaded == loaded
    assert {launched.launch.kernel.name for launched in virtual.runtime.launched} <= {name for _, name in loaded}
