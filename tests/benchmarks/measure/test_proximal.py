"""Learned iterative shrinkage against its peers: the peers are the same network, and the counts are right."""

import pytest
import torch
from rich.console import Console

from benchmarks.measure import proximal
from benchmarks.measure.proximal import ProximalCase, ProximalTiming
from benchmarks.peers.shrinkage_formulations import FORMULATIONS
from benchmarks.reports import tables
from memformer_kernels import lfom_solve


@pytest.mark.parametrize("learned", proximal.LEARNED)
def test_all_providers_are_the_same_network(learned: str) -> None:
    case = ProximalCase(8, 3, learned)
    for name, shrinkage in proximal.providers().items():
        if "compiled" not in name:
            proximal.check(shrinkage, case)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_a_peer_is_lfom_solve(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    h, b, a = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 3, 3), (7, 3), (2, 3, 3)))
    levels = torch.tensor([0.1, 0.3], dtype=torch.float64)
    ours = lfom_solve(h, b, -a, level=levels[:, None], backend="torch")
    torch.testing.assert_close(FORMULATIONS[name](h, b, a, levels), ours, rtol=1e-12, atol=1e-12)


def test_a_wrong_provider_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match="learned shrinkage is wrong"):
        proximal.check(lambda *x: 2 * FORMULATIONS["LISTA"](*x), ProximalCase(8, 2, "sizes"))


def test_counts_and_the_table() -> None:
    sizes, matrices = (ProximalCase(10, 2, learned, d=3) for learned in proximal.LEARNED)
    assert sizes.bytes_moved == 4 * (9 + 3 + 3)
    # One product with h and its transpose; sizes both ways, or A, its transpose in the last layer, and its gradient.
    assert sizes.multiply_adds == 2 * 9 + 2 * 2 * 3 + 3
    assert matrices.multiply_adds == 2 * 9 + (2 + 1 + 2) * 9 + 3
    timings = [ProximalTiming(sizes, "memformer_kernels (cpu)", 1.0, None), ProximalTiming(sizes, "a peer", 20.0, 3.0)]
    console = Console(record=True, width=120)
    tables.print_proximal(timings, console)
    shown = console.export_text()
    assert "a peer" in shown
    assert "20" in shown
