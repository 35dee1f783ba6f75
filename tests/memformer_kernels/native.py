"""What tests of the native CPU kernels share: instruction sets, layouts of tokens, gradients."""

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from memformer_kernels import library, memformer_predict
from memformer_kernels.testing import Case
from tests.memformer_kernels.cases import normal, seeded

_PATH = library.status("cpu").path
if _PATH is None:
    pytest.skip(library.status("cpu").reason, allow_module_level=True)
library.load("cpu")
NATIVE = torch.ops.memformer_native

PATIENCE = 50 if json.loads(_PATH.with_suffix(".json").read_text(encoding="utf-8")).get("sanitizer") else 1
"""How many times as long as usual a kernel may take: one that a sanitizer watches is not optimised."""


def _sets() -> list[str]:
    """The instruction sets of this build that this processor has."""
    before, present = NATIVE.instruction_set(), []
    for name in library.status("cpu").instruction_sets:
        try:
            NATIVE.use_instruction_set(name)
            present.append(name)
        except RuntimeError:
            continue
    NATIVE.use_instruction_set(before)
    return present


@pytest.fixture(params=_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = NATIVE.instruction_set()
    NATIVE.use_instruction_set(request.param)
    yield request.param
    NATIVE.use_instruction_set(before)


def with_gradients(outputs: Tensor | tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients from given gradients of the outputs: PyTorch's own sums depend on its threads."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [normal(seeded(9), *x.shape).to(x.dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]


def assert_same_bits_on_threads(make: Callable[[], list[Tensor]]) -> None:
    """What is made on one thread is bit for bit what is made on two and on four."""
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            made.append(make())
    finally:
        torch.set_num_threads(threads)
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


def assert_a_spoilt_task_spoils_no_other(case: Case) -> None:
    """Of five tasks the third has a token that is no number: its results are none, and all others keep their bits."""
    spoilt = case.z.detach().clone()
    spoilt[2, 0, 1] = torch.nan
    network, kept = (case.q, *case.parameters), [0, 1, 3, 4]
    made = []
    for z in (case.z, spoilt.requires_grad_()):
        predictions = memformer_predict(z, *network, backend="cpu")
        made.append((predictions, *torch.autograd.grad(predictions.sum(), [z, case.q])))
    (clean, clean_z, _), (predictions, grad_z, grad_q) = made
    assert torch.equal(predictions[kept], clean[kept])
    assert predictions[2].isnan().all()
    assert torch.equal(grad_z[kept], clean_z[kept])
    assert grad_q.isnan().all()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sliced tasks": lambda z: z.repeat_interleave(2, 0)[::2],
    "sliced tokens": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda z: z.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda z: z.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "offset": lambda z: torch.cat([z[:1], z])[1:],
    "expanded": lambda z: z[:1].expand_as(z),
}
