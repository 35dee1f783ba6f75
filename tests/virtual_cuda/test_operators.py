"""Every operator of the CUDA library, from the public functions down to compiled kernels, on a virtual device.

What they compute there is told by tests/gpu, as on an NVIDIA GPU.
"""

from contextlib import nullcontext

import pytest
import torch

from benchmarks.gpu.virtual_cuda.devices import HOPPER
from benchmarks.gpu.virtual_cuda.virtual import Virtual
from memformer_kernels import Adam, GaussianStatistics, context_gram, explain, memformer_stack, train_steps
from tests.gpu.calls import losses, others, with_target
from tests.memformer_kernels.cases import make_case
from tests.memformer_kernels.training.runs import state


def _implemented() -> set[str]:
    """Operators that have a kernel for CUDA."""
    names = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("memformer_native::")]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name.split("::")[1] for name in names if has(name, "CUDA")}


def test_every_operator_of_the_library_runs(virtual: Virtual) -> None:
    """And what this test calls is all that there is."""
    virtual.operators.called.clear()
    case = make_case(width=3, tokens=5, tasks=2)
    memformer_stack(case.z, case.q.requires_grad_(), case.p, backend="cuda").sum().backward()
    losses(with_target(case, 1), "cuda")
    others(3, "cuda")
    train_steps(state(dtype=torch.float32), GaussianStatistics(3, 8, 4), 1, optimizer=Adam(0.1), backend="cuda")
    assert virtual.operators.called == _implemented()
    assert {launched.stream for launched in virtual.runtime.launched} == {virtual.runtime.torch_stream(HOPPER)}


def test_a_call_that_failed_leaves_no_error_to_the_next(virtual: Virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime remembers an error of a thread until it is asked for it."""
    z = torch.ones(4, 9, 3)
    monkeypatch.setattr(virtual.runtime, "calls", nullcontext)
    with monkeypatch.context() as patch:
        patch.setattr(virtual.runtime, "choose", lambda binary, kernel, device: None)
        with pytest.raises(RuntimeError, match="CUDA: no kernel image"):
            context_gram(z, 8)
    assert virtual.runtime._library.cudaPeekAtLastError() == 0
    assert torch.equal(context_gram(z, 8), torch.full((4, 3, 3), 8.0))
    assert {report.check for report in virtual.take_reports()} == {"launch"}


def test_a_virtual_device_is_a_gpu_to_plans(virtual: Virtual) -> None:
    case = make_case(structure="response-only", width=6, tokens=9)
    assert explain(case.z.new_zeros(2, 40, 18), case.z.new_zeros(2, 1, 17, 17)).regime == "tile"
    with pytest.raises(RuntimeError, match="backend='cpu' serves tensors on the CPU"):
        explain(case.z, case.q, backend="cpu")
