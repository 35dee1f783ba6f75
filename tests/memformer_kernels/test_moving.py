"""The tests' own backend changes nothing but the device."""

import pytest
import torch

from memformer_kernels import backends, memformer_loss
from tests.memformer_kernels.cases import make_case, normal, seeded
from tests.memformer_kernels.moving import MovingBackend, moved


def test_layout_is_kept() -> None:
    base = torch.arange(60.0).view(3, 4, 5)
    views = [base.transpose(0, 2), base[1:, ::2], base[:, :1].expand(3, 6, 5), base.flatten()[7:], torch.empty(0, 3)]
    for view in [*views, *[view.bfloat16() for view in views]]:
        made = moved(view, "cpu")
        assert (made.shape, made.stride(), made.storage_offset(), made.dtype) == (
            view.shape,
            view.stride(),
            view.storage_offset(),
            view.dtype,
        )
        assert torch.equal(made, view)


def test_operations_run_as_on_the_backend_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tasks=5)
    target = normal(seeded(3), 5, 1)

    def run() -> list[torch.Tensor]:
        q = case.q.clone().requires_grad_()
        loss = memformer_loss(case.z, target, q, *case.parameters, backend="torch")
        return [loss.detach(), *torch.autograd.grad(loss, q)]

    expected = run()
    monkeypatch.setitem(backends.BACKENDS, "torch", MovingBackend(backends.BACKENDS["torch"], "cpu"))
    for made, exact in zip(run(), expected, strict=True):
        assert torch.equal(made, exact)
