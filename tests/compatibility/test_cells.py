"""Every cell of the table is what the page says."""

import re
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from tests.compatibility.matrix import CELLS, ON_RANKS, SLOW, Cell
from tests.compatibility.ranks import Ranks
from tests.compatibility.ranks import check as check_on_ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize(
    "cell", [pytest.param(x, id=x.id, marks=[pytest.mark.slow] if x.column in SLOW else []) for x in CELLS]
)
def test_cell(cell: Cell, ranks: Ranks) -> None:
    def check() -> None:
        if cell.column in ON_RANKS:
            ranks.run(partial(check_on_ranks, cell.column, cell.row))
        else:
            cell.check()

    if cell.error is None:
        check()
    else:
        with pytest.raises(Exception, match=re.escape(cell.error)):
            check()
