"""The reference forms check each other, and the plainest loops over tasks and tokens check the literal one."""

import pytest
import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.testing import Case, float64_violations, in_form, relative_error, results
from tests.memformer_kernels.cases import (
    GRANULARITIES,
    RULES,
    STRUCTURES,
    draw_projections,
    draw_tokens,
    make_case,
    normal,
    seeded,
)

CONTEXTS: dict[str, int | Tensor | None] = {
    "default": None,
    "padded": 4,
    "ragged": torch.tensor([1, 5, 3]),
    "whole": 7,
}


def _by_loops(case: Case, context: list[int]) -> Tensor:
    """Z_L by the equations, one task, token, head and register at a time."""
    q, p = reference.projections(case.q, case.p, case.z.shape[-1])
    layers, heads = q.shape[:2]
    total, width = case.z.shape[1:]
    gamma = torch.eye(layers)[:, :, None, None, None] if case.gamma is None else case.gamma
    if gamma.ndim == 4:
        gamma = torch.eye(layers)[:, :, None, None, None] * gamma.expand(layers, heads, total, width)[:, None]
    gamma = gamma.expand(layers, layers, heads, total, width)
    beta = torch.zeros(()) if case.beta is None else case.beta
    beta = beta.expand(layers, heads, total, width)
    gate = torch.ones(()) if case.gate is None else case.gate
    gate = gate.expand(layers, heads)
    done = []
    for z, n in zip(case.z, context, strict=True):
        registers: list[list[Tensor]] = []
        for layer in range(layers):
            row = []
            for head in range(heads):
                rows = [
                    sum((z[t] @ q[layer, head] @ z[i]) * (p[layer, head] @ z[i]) for i in range(n)) / n
                    for t in range(total)
                ]
                register = torch.stack(rows)
                if layer:
                    register = register + beta[layer, head] * registers[-1][head]
                row.append(register)
            registers.append(row)
            for head in range(heads):
                for past in range(layer + 1):
                    z = z + gate[layer, head] * gamma[layer, past, head] * registers[past][head]
        done.append(z)
    return torch.stack(done)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rule", RULES)
def test_literal_is_the_equations(rule: str, structure: str) -> None:
    case = make_case(rule=rule, granularity="full", structure=structure, tasks=2, tokens=4, width=3, heads=2)
    for context, lengths in ((None, [3, 3]), (2, [2, 2]), (torch.tensor([1, 4]), [1, 4])):
        made = reference.stack(case.z, case.q, *case.parameters, context=context)
        assert relative_error(made, _by_loops(case, lengths)) < 1e-13


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rule", RULES)
def test_forms_agree_on_every_rule(rule: str, granularity: str, context: str) -> None:
    for structure in STRUCTURES:
        case = make_case(rule=rule, granularity=granularity, structure=structure, context=CONTEXTS[context])
        if context == "padded":
            case = make_case(rule=rule, granularity=granularity, structure=structure, context=4, queries=2)
        assert float64_violations(in_form("reassociated"), case) == {}
        if not case.token_axis:
            assert float64_violations(in_form("gram"), case) == {}


@pytest.mark.parametrize("gate_axes", [1, 2])
@pytest.mark.parametrize("gamma_axes", [None, 4, 5])
@pytest.mark.parametrize("momentum", [False, True])
def test_forms_agree_with_gates(gate_axes: int, gamma_axes: int | None, momentum: bool) -> None:
    generator = seeded(1)
    z = draw_tokens(generator, 3, 8, 4)
    q, p = draw_projections(generator, "dense", 3, 2, 4)
    gamma = None if gamma_axes is None else normal(generator, *(3, 3, 2, 1, 4)[5 - gamma_axes :])
    beta = normal(generator, 3, 2, 1, 4, scale=0.5) if momentum else None
    gate = normal(generator, *(3, 2)[2 - gate_axes :])
    case = Case(z, q, p, gamma, beta, gate, context=5)
    exact = results(in_form("literal"), case.to(torch.float64))
    assert exact["grad_gate"].norm() > 0
    for form in ("reassociated", "gram"):
        assert float64_violations(in_form(form), case) == {}


def test_many_queries_are_predicted_one_by_one_alike() -> None:
    case = make_case(tokens=9, context=4)
    together = reference.predict(case.z, case.q, *case.parameters, context=4)
    assert together.shape == (3, 3, 5)
    for query in range(5):
        alone = torch.cat([case.z[:, :4], case.z[:, 4 + query : 5 + query]], 1)
        single = reference.predict(alone, case.q, *case.parameters)
        assert relative_error(together[..., query : query + 1], single) < 1e-14


@pytest.mark.parametrize("form", ["literal", "reassociated", "gram"])
def test_padding_is_never_read(form: str) -> None:
    case = make_case(tokens=9, context=4, queries=2)
    hole = case.z.clone()
    hole[:, 4:7] = torch.nan
    clean = reference.predict(case.z, case.q, *case.parameters, context=4, queries=2, form=form)
    holed = reference.predict(hole, case.q, *case.parameters, context=4, queries=2, form=form)
    assert torch.equal(clean, holed)


def test_first_order_method_is_its_equations() -> None:
    generator = seeded(3)
    h, b, a = normal(generator, 2, 3, 3), normal(generator, 2, 3), normal(generator, 4, 3, 3)
    gamma, beta = normal(generator, 4, 4, 3), normal(generator, 4, 3)
    iterates = reference.lfom_solve(0.3 * h, b, 0.3 * a, gamma, beta)
    for task in range(2):
        w, registers = torch.zeros(3, dtype=torch.float64), [torch.zeros(3, dtype=torch.float64)]
        for layer in range(4):
            g = b[task] - 0.3 * h[task] @ w
            registers.append(-(0.3 * a[layer] @ g) + beta[layer] * registers[-1])
            for past in range(layer + 1):
                w = w + gamma[layer, past] * registers[past + 1]
            assert relative_error(iterates[layer, task], w) < 1e-13


def test_block_projections_have_their_borders() -> None:
    generator = seeded(4)
    a, bm = normal(generator, 2, 3, 3), normal(generator, 2, 3, 3)
    q, p = reference.projections(a, bm, 4)
    assert torch.equal(q[:, :3, :3], a)
    assert torch.equal(p[:, :3, :3], bm)
    assert not q[:, 3].any()
    assert not q[:, :, 3].any()
    assert torch.equal(p[:, 3], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(2, 4))
    assert torch.equal(p[:, :, 3], p[:, 3])
    assert torch.equal(reference.projections(a, None, 4)[1], reference.projections(a, torch.zeros_like(bm), 4)[1])
