from __future__ import annotations

import pytest
import torch

from memformer_lab.tasks.standardised import standardise


def _rows(batch: int = 6, rows: int = 9, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 100 + 7 * torch.randn(batch, rows, d, generator=generator, dtype=torch.float64)
    return x, 3 * torch.randn(batch, rows, generator=generator, dtype=torch.float64) - 50


def test_context_columns_have_mean_zero_and_variance_one() -> None:
    x, y = _rows()
    known = standardise(x, y, 7).z[:, :7]
    torch.testing.assert_close(known.mean(1), torch.zeros(6, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(known.var(1, correction=0), torch.ones(6, 4, dtype=torch.float64), rtol=1e-12, atol=0)


def test_equals_the_definition_row_by_row() -> None:
    x, y = _rows()
    scaled = standardise(x, y, 7)
    for task in range(6):
        mean, deviation = x[task, :7].mean(0), x[task, :7].std(0, correction=0)
        torch.testing.assert_close(scaled.z[task, :, :-1], (x[task] - mean) / deviation)
        response = (y[task] - y[task, :7].mean()) / y[task, :7].std(correction=0)
        torch.testing.assert_close(scaled.z[task, :7, -1], response[:7])
        torch.testing.assert_close(scaled.target[task], response[7:])
        torch.testing.assert_close(scaled.x_scale[task], deviation)
        torch.testing.assert_close(scaled.y_scale[task], y[task, :7].std(correction=0))
    assert torch.equal(scaled.z[:, 7:, -1], torch.zeros(6, 2, dtype=torch.float64))


def test_queries_never_reach_the_context() -> None:
    x, y = _rows()
    before = standardise(x, y, 7)
    x[:, 7:] *= 1000
    y[:, 7:] += 1e6
    after = standardise(x, y, 7)
    assert torch.equal(before.z[:, :7], after.z[:, :7])
    assert torch.equal(before.x_scale, after.x_scale)
    assert torch.equal(before.y_scale, after.y_scale)
    assert not torch.equal(before.target, after.target)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -3.0])
def test_a_feature_constant_over_the_context_becomes_zero_everywhere(value: float) -> None:
    x, y = _rows()
    x[2, :7, 1] = value
    scaled = standardise(x, y, 7)
    assert torch.equal(scaled.z[2, :, 1], torch.zeros(9, dtype=torch.float64))
    assert scaled.x_scale[2, 1] == 1
    others = standardise(x[..., [0, 2]], y, 7)
    assert torch.equal(scaled.z[..., [0, 2, 3]], others.z)


def test_a_response_constant_over_the_context_keeps_its_own_units() -> None:
    x, y = _rows()
    y[4, :7] = 0.1
    scaled = standardise(x, y, 7)
    assert torch.equal(scaled.z[4, :, -1], torch.zeros(9, dtype=torch.float64))
    assert scaled.y_scale[4] == 1
    torch.testing.assert_close(scaled.target[4], y[4, 7:] - 0.1)


def test_one_context_row_is_all_zero() -> None:
    x, y = _rows()
    scaled = standardise(x, y, 1)
    assert torch.equal(scaled.z[..., :-1], torch.zeros(6, 9, 3, dtype=torch.float64))


def test_a_task_with_nan_spoils_no_other() -> None:
    x, y = _rows()
    expected = standardise(x, y, 7)
    x[1, 0, 0] = torch.nan
    scaled = standardise(x, y, 7)
    others = [0, 2, 3, 4, 5]
    assert scaled.z[1, :, 0].isnan().all()
    assert torch.equal(scaled.z[others], expected.z[others])


def test_arguments_are_left_alone() -> None:
    x, y = _rows()
    copies = x.clone(), y.clone()
    standardise(x, y, 7)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])


@pytest.mark.parametrize("context", [0, -1, 10])
def test_context_outside_the_rows_is_an_error(context: int) -> None:
    with pytest.raises(ValueError, match="context must be between 1 and the number of rows 9"):
        standardise(*_rows(), context)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    x, y = _rows()
    with pytest.raises(ValueError, match="x and y must be"):
        standardise(x, y[:, 1:], 7)
    with pytest.raises(ValueError, match="x and y must be"):
        standardise(x[0], y[0], 7)
