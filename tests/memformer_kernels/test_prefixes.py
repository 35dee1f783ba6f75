"""Every prefix in one pass: `memformer_prefix_predict` and `memformer_prefix_loss` against a call for each prefix."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from memformer_kernels import (
    build_info,
    explain,
    memformer_predict,
    memformer_prefix_loss,
    memformer_prefix_predict,
    reference,
)
from memformer_kernels.backends.pytorch.forms import ResponseParameters
from memformer_kernels.backends.pytorch.prefixes import PrefixForm, block_length
from memformer_kernels.calls.arguments import form_name, form_named
from memformer_kernels.testing import GRADIENT_FACTOR, OUTPUT_FACTOR, Case, relative_error
from tests.marks import slow_but
from tests.memformer_kernels.allocations import peak_bytes
from tests.memformer_kernels.cases import NAMED_STRUCTURES, RULES, STRUCTURES, leaves, make_case, normal, seeded
from tests.memformer_kernels.test_parity import fixed

BACKENDS = [name for name in ("torch", "cpu") if build_info().backends[name].available]
OPS = torch.ops.memformer_kernels
NETWORKS = slow_but(
    lambda rule, structure, backend: backend == "cpu" or rule in ("linear", "recursive", "gated_heads"),
    [(rule, structure, backend) for backend in BACKENDS for rule in RULES for structure in STRUCTURES],
)
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def _case(**sizes: Any) -> Case:
    """A network, with nine tokens a task where nothing is said; every argument that may requires a gradient."""
    case = make_case(**{"tokens": 9, **sizes})
    for leaf in leaves(case).values():
        leaf.requires_grad_()
    return case


def _ours(case: Case, first: int, backend: str, layers: bool = True) -> Tensor:
    return memformer_prefix_predict(case.z, case.q, *case.parameters, first=first, layers=layers, backend=backend)


def _one_by_one(case: Case, first: int) -> Tensor:
    """A call of `memformer_predict` for each prefix, (L, B, N - first)."""
    zero = torch.zeros_like(case.z[:, :1, -1:])
    made = []
    for token in range(first, case.z.shape[1]):
        query = torch.cat([case.z[:, token, None, :-1], zero], 2)
        z = torch.cat([case.z[:, :token], query], 1)
        made.append(memformer_predict(z, case.q, *case.parameters, context=token, layers=True, backend="torch"))
    return torch.cat(made, 2)


def _with_gradients(made: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = normal(seeded(7), *made.shape).to(made.dtype)
    return [made.detach(), *torch.autograd.grad((made * weights).sum(), inputs)]


def _assert_equal(ours: list[Tensor], expected: list[Tensor], bound: float = 1e-12) -> None:
    errors = [relative_error(one, other) for one, other in zip(ours, expected, strict=True)]
    assert all(error <= bound for error in errors), errors


@pytest.mark.parametrize(("rule", "structure", "backend"), NETWORKS)
def test_equals_a_call_for_each_prefix(rule: str, structure: str, backend: str) -> None:
    case = _case(rule=rule, structure=structure)
    inputs = list(leaves(case).values())
    for first in (1, 4, 8):
        ours = _with_gradients(_ours(case, first, backend), *inputs)
        _assert_equal(ours, _with_gradients(_one_by_one(case, first), *inputs))
        _assert_equal(ours[:1], [reference.prefix_predict(case.z, case.q, *case.parameters, first=first).detach()])


@pytest.mark.parametrize("structure", NAMED_STRUCTURES)
def test_the_references_agree(structure: str) -> None:
    case = make_case(structure=structure)
    literal, *others = (
        reference.prefix_predict(case.z, case.q, *case.parameters, first=2, form=form)
        for form in ("literal", "reassociated", "gram")
    )
    for other in others:
        torch.testing.assert_close(other, literal, rtol=1e-12, atol=1e-12)


@on_every_backend
@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize(("tokens", "first"), [(2, 1), (33, 1), (70, 3), (70, 40), (70, 64), (97, 96)])
def test_many_tokens(tokens: int, first: int, structure: str, backend: str) -> None:
    """Blocks that end before the first prediction, at it, and with it; a sum of three blocks."""
    case = _case(structure=structure, tokens=tokens, width=6, layers=2, tasks=2)
    inputs = list(leaves(case).values())
    ours = _with_gradients(_ours(case, first, backend), *inputs)
    _assert_equal(
        ours, _with_gradients(reference.prefix_predict(case.z, case.q, *case.parameters, first=first), *inputs)
    )


@st.composite
def networks(draw: st.DrawFn) -> tuple[Case, int]:
    """Networks of every size that a lane holds, and the first token that is predicted."""
    structure = draw(st.sampled_from(sorted(STRUCTURES)))
    width, tokens = draw(st.integers(2, 17 if structure == "response-only" else 16)), draw(st.integers(2, 70))
    rule, heads, layers = draw(st.sampled_from(RULES)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    granularity = draw(st.sampled_from(["scalar", "feature"]))
    case = _case(
        structure=structure,
        rule=rule,
        granularity=granularity,
        tasks=draw(st.integers(1, 20)),
        tokens=tokens,
        width=width,
        layers=layers,
        heads=heads,
        seed=draw(st.integers(0, 2**31)),
    )
    return case, draw(st.integers(1, tokens - 1))


@on_every_backend
@fixed(40)
@given(drawn=networks())
def test_networks_of_every_size(backend: str, drawn: tuple[Case, int]) -> None:
    case, first = drawn
    inputs = list(leaves(case).values())
    expected = reference.prefix_predict(case.z, case.q, *case.parameters, first=first, form="gram")
    _assert_equal(
        _with_gradients(_ours(case, first, backend), *inputs), _with_gradients(expected, *inputs), bound=1e-10
    )


@on_every_backend
def test_a_loss_is_the_mean_over_tasks_and_tokens(backend: str) -> None:
    case = _case(rule="gated_heads", tokens=40, width=6)
    target = normal(seeded(1), 3, 37).requires_grad_()
    inputs = [target, *leaves(case).values()]
    for wanted in (inputs, inputs[2:]):  # in one order of blocks, and in the other
        fixed_inputs = [x for x in inputs if all(x is not y for y in wanted)]
        for x in fixed_inputs:
            x.requires_grad_(False)
        loss = memformer_prefix_loss(case.z, target, case.q, *case.parameters, first=3, backend=backend)
        expected = (reference.prefix_predict(case.z, case.q, *case.parameters, first=3)[-1] - target).square().mean()
        _assert_equal(
            [loss.detach(), *torch.autograd.grad(loss, wanted)],
            [expected.detach(), *torch.autograd.grad(expected, wanted)],
        )
        with torch.no_grad():
            alone = memformer_prefix_loss(case.z, target, case.q, *case.parameters, first=3, backend=backend)
        _assert_equal([alone], [expected.detach()])


@on_every_backend
def test_responses_are_a_target_without_a_copy(backend: str) -> None:
    """The tokens' own responses: strided, and their gradient joins that of the tokens."""
    case = _case(tasks=9, tokens=35)
    for z in (case.z, case.z.detach()):
        wanted, target = [x for x in (z, case.q) if x.requires_grad], z[:, 2:, -1]
        loss = memformer_prefix_loss(z, target, case.q, *case.parameters, first=2, backend=backend)
        predictions = reference.prefix_predict(z, case.q, *case.parameters, first=2, form="gram")[-1]
        expected = (predictions - target).square().mean()
        _assert_equal(
            [loss.detach(), *torch.autograd.grad(loss, wanted)],
            [expected.detach(), *torch.autograd.grad(expected, wanted)],
        )


@on_every_backend
def test_derivatives(backend: str) -> None:
    case = _case(tasks=1, tokens=3, width=3, layers=2, heads=1)
    values = leaves(case)

    def run(*tensors: Tensor) -> Tensor:
        return _ours(replace(case, **dict(zip(values, tensors, strict=True))), 1, backend)

    assert gradcheck(run, tuple(values.values()), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(run, tuple(values.values()), check_fwd_over_rev=True, fast_mode=True)


@on_every_backend
def test_derivatives_of_the_loss(backend: str) -> None:
    case = _case(rule="linear", tasks=1, tokens=3, width=3, layers=2, heads=1)
    target = normal(seeded(1), 1, 2).requires_grad_()

    def loss(z: Tensor, target: Tensor, q: Tensor) -> Tensor:
        return memformer_prefix_loss(z, target, q, case.p, backend=backend)

    assert gradcheck(loss, (case.z, target, case.q), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(loss, (case.z, target, case.q), fast_mode=True)


@on_every_backend
def test_operations(backend: str) -> None:
    case = _case(rule="recursive", tokens=6, layers=2)
    form = form_name("gram", "block", "diagonal", per_head=True)
    tensors, target = [case.z, case.q, case.p, case.gamma, case.beta], normal(seeded(1), 3, 4).requires_grad_()
    needs = [tensor is not None for tensor in tensors]
    torch.library.opcheck(OPS.prefix_predict.default, (*tensors, 2, form, True, backend))
    grad, own = normal(seeded(2), 2, 3, 4), [None if x is None else x.detach() for x in tensors]
    torch.library.opcheck(OPS.prefix_predict_backward.default, (grad, *own, 2, form, True, backend, needs))
    with_target = [tensors[0], target, *tensors[1:]]
    torch.library.opcheck(OPS.prefix_loss.default, (*with_target, 2, form, [needs[0], True, *needs[1:]], backend))


@on_every_backend
def test_only_needed_gradients_are_made(backend: str) -> None:
    case = _case(rule="recursive", tokens=40, layers=2)
    form = form_name("gram", "block", "diagonal", per_head=True)
    tensors = [None if x is None else x.detach() for x in (case.z, case.q, case.p, case.gamma, case.beta)]
    grad = normal(seeded(2), 1, 3, 38)
    present = [place for place, tensor in enumerate(tensors) if tensor is not None]
    everything = OPS.prefix_predict_backward(grad, *tensors, 2, form, False, backend, [True] * 5)
    for index, place in enumerate(present):
        needs = [place == other for other in range(5)]
        (alone,) = OPS.prefix_predict_backward(grad, *tensors, 2, form, False, backend, needs)
        torch.testing.assert_close(alone, everything[index], rtol=1e-12, atol=1e-12)


@on_every_backend
def test_no_prediction_reads_its_own_response_or_a_later_token(backend: str) -> None:
    case = _case(tokens=40)
    ours = _ours(case, 1, backend)
    for token in (5, 39):
        changed = case.z.detach().clone()
        changed[:, token, -1] = 1e3
        changed[:, token + 1 :] = torch.nan
        made = _ours(replace(case, z=changed), 1, backend)
        assert torch.equal(made[:, :, :token], ours[:, :, :token])


@on_every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_last_response_is_not_read(backend: str, value: float) -> None:
    case = _case(tokens=40)
    z = case.z.detach().clone()
    z[:, -1, -1] = value
    z.requires_grad_()
    target = torch.zeros(3, 36, dtype=torch.float64)
    inputs = [z, case.q]
    for run in (_ours, lambda *_: memformer_prefix_loss(z, target, case.q, *case.parameters, first=4, backend=backend)):
        made = _with_gradients(run(replace(case, z=z), 4, backend), *inputs)
        assert all(x.isfinite().all() for x in made)
        assert made[1][:, -1, -1].eq(0).all()


@on_every_backend
def test_a_task_that_is_not_finite_is_alone(backend: str) -> None:
    case = _case(tasks=20)
    z = case.z.detach().clone()
    z[3, 2] = torch.nan
    z.requires_grad_()
    ours = _ours(replace(case, z=z), 1, backend)
    (grad,) = torch.autograd.grad(ours.sum(), z)
    others = [task for task in range(20) if task != 3]
    whole = _ours(case, 1, backend)
    (whole_grad,) = torch.autograd.grad(whole.sum(), case.z)
    assert torch.equal(ours[:, others], whole[:, others])
    assert torch.equal(grad[others], whole_grad[others])
    assert ours[-1, 3].isnan().any()
    assert torch.equal(ours[:, 3, :1], whole[:, 3, :1])


@on_every_backend
@pytest.mark.parametrize("tasks", [0, 1, 17])
def test_numbers_of_tasks(backend: str, tasks: int) -> None:
    case = _case(tasks=tasks)
    target = torch.zeros(tasks, 8, dtype=torch.float64)
    loss = memformer_prefix_loss(case.z, target, case.q, *case.parameters, backend=backend)
    grads = torch.autograd.grad(loss, [case.z, case.q])
    assert _ours(case, 1, backend, layers=False).shape == (tasks, 8)
    if tasks == 0:
        assert loss.isnan()
        assert all(grad.eq(0).all() for grad in grads)
    else:
        expected = _one_by_one(case, 1)[-1].square().mean()
        _assert_equal([loss.detach(), *grads], [expected.detach(), *torch.autograd.grad(expected, [case.z, case.q])])


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_in_half_precision(backend: str, dtype: torch.dtype) -> None:
    case = _case().to(torch.float32)
    rounded = case.z.detach().to(dtype)
    target = torch.zeros(3, 8)
    ours = memformer_prefix_loss(rounded, target, case.q, *case.parameters, backend=backend)
    torch.testing.assert_close(
        ours, memformer_prefix_loss(rounded.float(), target, case.q, *case.parameters, backend=backend)
    )
    z = rounded.requires_grad_()
    (grad,) = torch.autograd.grad(_ours(replace(case, z=z), 1, backend).sum(), z)
    assert grad.dtype == dtype


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tasks last": lambda z: z.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "sliced": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "expanded": lambda z: z[:1].expand_as(z),
}


@on_every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    case = _case(tasks=20)
    laid = LAYOUTS[layout](case.z.detach())
    grad = normal(seeded(3), 3, 20, 7)
    made = []
    for z, incoming in ((laid.contiguous(), grad), (laid, grad.mT.contiguous().mT), (laid, grad[:1].expand(3, 20, 7))):
        leaf = z.detach().requires_grad_()
        out = _ours(replace(case, z=leaf), 2, backend)
        made.append([out.detach(), *torch.autograd.grad(out, [leaf, case.q], incoming)])
    _assert_equal(made[1], made[0])
    _assert_equal(made[2][:1], made[0][:1])


@on_every_backend
@pytest.mark.parametrize(
    "structure", slow_but(lambda structure: structure == "response-only", ["response-only", "block"])
)
def test_errors_in_float32_are_those_of_plain_pytorch(structure: str, backend: str) -> None:
    """At most twice, for gradients three times, the worst of the literal, re-associated and Gram forms."""
    case = _case(structure=structure, tasks=1000, tokens=21, width=6, layers=4)
    single = case.to(torch.float32)
    for leaf in leaves(single).values():
        leaf.requires_grad_()

    def results(of: Case, predictions: Tensor) -> list[Tensor]:
        loss = (predictions[-1] - of.z[:, 1:, -1].detach()).square().mean()
        return [predictions.detach(), *torch.autograd.grad(loss, list(leaves(of).values()))]

    def by_reference(of: Case, form: str) -> list[Tensor]:
        return results(of, reference.prefix_predict(of.z, of.q, *of.parameters, form=form))

    exact = by_reference(case, "literal")
    twins = [by_reference(single, form) for form in ("literal", "reassociated", "gram")]
    ours = results(single, _ours(single, 1, backend))
    factors = [OUTPUT_FACTOR, *[GRADIENT_FACTOR] * (len(ours) - 1)]
    for made, expected, factor, *twin in zip(ours, exact, factors, *twins, strict=True):
        budget = factor * max(relative_error(x, expected) for x in twin)
        assert relative_error(made, expected) <= budget


@on_every_backend
def test_no_matrix_of_every_prefix_is_kept(backend: str) -> None:
    """The results, and of a block's matrices what torch holds: far less than one matrix for each prefix."""
    case = make_case(structure="response-only", rule="linear", tasks=128, tokens=1025, width=16, layers=1, heads=1)
    z, q = case.z.float(), case.q.float()
    form = form_name("gram", "response-only", "linear", per_head=False)
    needs = [True, False, True, False, False, False]

    def call() -> list[Tensor]:
        return OPS.prefix_loss(z, z[:, 1:, -1], q, None, None, None, 1, form, needs, backend)

    call()
    everything, results = 4 * 128 * 1024 * 16 * 16, 4 * (z.numel() + q.numel() + 1)
    assert peak_bytes(call) < (everything if backend == "torch" else 1.01 * results)


class _Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_torch_makes_no_matrix_for_a_prefix_where_features_stay() -> None:
    tasks, prefixes, d = 2, 32, 64
    case = make_case(
        structure="response-only", rule="linear", tasks=tasks, tokens=prefixes + 1, width=d + 1, layers=2, heads=1
    )
    own = ResponseParameters(case.q, None, None, form_named(form_name("gram", "response-only", "linear", False)))
    with torch.no_grad(), _Largest() as seen:
        (grads,) = PrefixForm(case.z, 1, own).gradients(lambda _, predictions: predictions, 2, need_z=True)
    assert grads.z is not None
    assert tasks * d * d < seen.numbers < tasks * prefixes * d * d // 4


def test_blocks_are_even_and_no_fewer_than_their_prefixes() -> None:
    for prefixes in (1, 2, 31, 32, 33, 63, 64, 65, 1000, 1024, 5000):
        length = block_length(prefixes)
        assert 1 <= length <= prefixes
        assert length**2 >= prefixes or length == prefixes


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")
def test_explain_says_who_has_every_prefix() -> None:
    z, q = torch.zeros(2, 7, 4), torch.zeros(3, 2, 3, 3)
    for arguments in ((z, q), (z, z[:, 1:, -1], q)):
        plan = explain(*arguments, first=1)
        assert (plan.backend, plan.algorithm, plan.regime) == ("cpu", "gram", "tiny Gram")
        assert "grows by a token" in plan.reason
    assert explain(z, q, q, first=2).backend == "cpu"
    assert explain(z, q, first=2, backend="torch").reason.endswith("the backend was asked for")
    for width, p in ((18, None), (17, torch.zeros(1, 1, 16, 16))):
        wide = explain(torch.zeros(2, 7, width), torch.zeros(1, 1, width - 1, width - 1), p, first=2)
        assert wide.backend == "torch"
        assert "native kernels for tiny networks on a CPU" in wide.reason
