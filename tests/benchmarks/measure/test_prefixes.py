"""Every prefix in one pass against its peers: the peers are the same loss, and the counts are right."""

import pytest
import torch
from rich.console import Console

from benchmarks.measure import prefixes
from benchmarks.measure.prefixes import PrefixCase, PrefixTiming
from benchmarks.peers.prefix_formulations import FORMULATIONS
from benchmarks.reports import tables
from memformer_kernels import memformer_prefix_loss


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("first", [1, 4])
def test_a_peer_is_the_same_loss(name: str, first: int) -> None:
    generator = torch.Generator().manual_seed(1)
    z, q = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 9, 4), (3, 2, 3, 3)))
    gamma = torch.randn(3, 3, 1, 1, 4, generator=generator, dtype=torch.float64)
    target = z[:, first:, -1]
    ours = memformer_prefix_loss(z, target, q, None, gamma, first=first, backend="torch")
    torch.testing.assert_close(FORMULATIONS[name](z, target, q, gamma, first), ours, rtol=1e-12, atol=1e-12)
    prefixes.check(FORMULATIONS[name], PrefixCase(8, d=3, tokens=7, layers=2, first=first))


def test_a_wrong_provider_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match="every prefix is wrong"):
        prefixes.check(lambda *x: 2 * FORMULATIONS["cumulative Gram"](*x), PrefixCase(8, d=3, tokens=7, layers=2))


def test_counts_and_the_table() -> None:
    case = PrefixCase(10, d=2, tokens=4, layers=1, first=2)
    # Two of three prefixes: A b, the update and the read-out; back A's gradient, its transpose, gamma both ways.
    assert case.bytes_moved == 4 * 4 * 3
    assert case.multiply_adds == 3 * 5 + 2 * ((4 + 2 + 2) + (4 + 4 + 4 + 2))
    timings = [PrefixTiming(case, "memformer_kernels (cpu)", 1.0, None), PrefixTiming(case, "a peer", 20.0, 3.0)]
    console = Console(record=True, width=120)
    tables.print_prefixes(timings, console)
    shown = console.export_text()
    assert "a peer" in shown
    assert "20" in shown
