"""What holds of large batches on every backend of a GPU: means of parts, and offsets past 32 bits."""

from typing import Any

import torch
from torch import Tensor

from memformer_kernels import memformer_loss, memformer_predict
from memformer_kernels.testing import relative_error
from tests.gpu.tensors import NVIDIA


def losses_are_means_of_parts(backend: str, tokens: Tensor, answers: Tensor, network: list[Tensor], chunk: int) -> None:
    """A loss in float32 and its gradients to q and gamma against the means of chunks in float64."""
    batch = len(tokens)

    def run(z: Tensor, target: Tensor, dtype: torch.dtype, backend: str) -> list[Tensor]:
        parameters = [x.detach().to(dtype).requires_grad_() for x in network]
        loss = memformer_loss(z.to(dtype), target.to(dtype), parameters[0], gamma=parameters[1], backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    exact = [torch.zeros_like(x, dtype=torch.float64) for x in (tokens.new_empty(()), *network)]
    for part, answer in zip(tokens.split(chunk), answers.split(chunk), strict=True):
        for total, share in zip(exact, run(part, answer, torch.float64, "torch"), strict=True):
            total += share * (len(part) / batch)
    for made, expected in zip(run(tokens, answers, torch.float32, backend), exact, strict=True):
        assert relative_error(made, expected) < 1e-5


def last_tasks_lie_past_two_to_the_31(backend: str, algorithm: str) -> None:
    """2^31 + 2^16 numbers of tokens: the last tasks lie past what 32 bits address; gradients of tokens too."""
    batch = 2**25 + 1024
    z = torch.zeros(batch, 8, 8, device="cuda", dtype=torch.float16)
    assert z.numel() > 2**31
    z[-3:] = NVIDIA.draw(3, 8, 8).half()
    q = -0.3 * torch.eye(7, device="cuda").expand(2, 1, 7, 7)
    options: dict[str, Any] = {"backend": backend, "algorithm": algorithm}
    made = memformer_predict(z, q, **options)
    assert torch.equal(made[-3:], memformer_predict(z[-3:].clone(), q, **options))
    assert not made[:-3].any()
    last = z[-3:].clone().requires_grad_()
    z.requires_grad_()
    (grad,) = torch.autograd.grad(memformer_predict(z, q, **options).sum(), z)
    (expected,) = torch.autograd.grad(memformer_predict(last, q, **options).sum(), last)
    assert torch.equal(grad[-3:], expected)
