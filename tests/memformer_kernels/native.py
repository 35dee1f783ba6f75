"""What tests of the native CPU kernels share: instruction sets, layouts of tokens, gradients."""

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from memformer_kernels import library
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


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sliced tasks": lambda z: z.repeat_interleave(2, 0)[::2],
    "sliced tokens": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda z: z.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda z: z.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "offset": lambda z: torch.cat([z[:1], z])[1:],
    "expanded": lambda z: z[:1].expand_as(z),
}
