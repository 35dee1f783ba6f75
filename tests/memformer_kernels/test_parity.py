"""Random networks of every shape on every path against the literal reference: outputs and every gradient."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from memformer_kernels.testing import Case, float64_violations, public
from tests.memformer_kernels.cases import STRUCTURES, draw_projections, draw_tokens, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_path

on_token_paths = pytest.mark.parametrize("path", [path for path in PATHS if path.algorithm == "token"], ids=str)


@st.composite
def networks(draw: st.DrawFn, token_axis: bool) -> Case:
    """Every combination of structure, axes of gamma and beta, gates and contexts, in float64."""

    def one_of(*values: int) -> int:
        return draw(st.sampled_from(values))

    width, tokens = draw(st.integers(2, 17)), draw(st.integers(2, 70))
    heads, layers, tasks = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    generator = seeded(draw(st.integers(0, 2**31)))
    z = draw_tokens(generator, tasks, tokens, width)
    q, p = draw_projections(generator, draw(st.sampled_from(sorted(STRUCTURES))), layers, heads, width)

    def coefficient(full: tuple[int, ...], axes: int, scale: float) -> Tensor:
        sizes = [one_of(1, size) for size in full]
        if not token_axis:
            sizes[-2] = 1
        return normal(generator, *sizes[len(full) - axes :], scale=scale)

    gamma_axes = draw(st.sampled_from([None, 4, 5]))
    full = (layers, layers, heads, tokens, width)
    gamma = None if gamma_axes is None else coefficient(full, gamma_axes, 0.5)
    beta_axes = draw(st.sampled_from([None, 0, 1, 2, 3, 4]))
    beta = None if beta_axes is None else coefficient(full[1:], beta_axes, 0.5)
    gate_axes = draw(st.sampled_from([None, 1, 2]))
    gate = None if gate_axes is None else 1 + normal(generator, *(layers, heads)[2 - gate_axes :], scale=0.3)
    context: int | Tensor | None = None
    queries: int | None = None
    kind = draw(st.sampled_from(["default", "int", "ragged"]))
    if kind == "int":
        context = draw(st.integers(1, tokens))
        queries = draw(st.one_of(st.none(), st.integers(0, tokens - context)))
    elif kind == "ragged":
        queries = draw(st.one_of(st.none(), st.integers(0, min(3, tokens - 1))))
        longest = tokens - (1 if queries is None else queries)
        context = torch.randint(1, longest + 1, (tasks,), generator=generator)
    return Case(z, q, p, gamma, beta, gate, context=context, queries=queries)


def fixed(examples: int) -> settings:
    """The same examples in every run, so that a failure in one is a failure in the next."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@on_every_path
@fixed(150)
@given(case=networks(token_axis=False))
def test_without_a_token_axis(path: Path, case: Case) -> None:
    assert float64_violations(public(*path), case) == {}


@on_token_paths
@fixed(150)
@given(case=networks(token_axis=True))
def test_with_a_token_axis(path: Path, case: Case) -> None:
    assert float64_violations(public(*path), case) == {}


@pytest.mark.slow
@on_every_path
@fixed(2000)
@given(case=networks(token_axis=False))
def test_many_more_without_a_token_axis(path: Path, case: Case) -> None:
    assert float64_violations(public(*path), case) == {}


@pytest.mark.slow
@on_token_paths
@fixed(2000)
@given(case=networks(token_axis=True))
def test_many_more_with_a_token_axis(path: Path, case: Case) -> None:
    assert float64_violations(public(*path), case) == {}
