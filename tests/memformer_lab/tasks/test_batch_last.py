from __future__ import annotations

import pytest
import torch

from memformer_lab.tasks.gaussian import product


@pytest.mark.parametrize(("rows", "d", "batch"), [(1, 1, 1), (3, 3, 7), (2, 5, 4), (6, 2, 0)])
def test_product_equals_the_matrix_products_task_by_task(rows: int, d: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(rows, d, batch, generator=generator, dtype=torch.float64)
    vectors = torch.randn(d, batch, generator=generator, dtype=torch.float64)
    expected = torch.einsum("rdb,db->rb", matrices, vectors)
    torch.testing.assert_close(product(matrices, vectors), expected, rtol=1e-13, atol=1e-13)


def test_product_leaves_its_arguments_alone() -> None:
    matrices, vectors = torch.ones(2, 3, 4), torch.ones(3, 4)
    product(matrices, vectors)
    assert torch.equal(matrices, torch.ones(2, 3, 4))
    assert torch.equal(vectors, torch.ones(3, 4))
