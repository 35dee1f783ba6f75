"""Timing of attention and the register update: what is timed is right, and the record holds every figure."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import blocks
from benchmarks.__main__ import app
from memformer_kernels import reference_blocks

CPU = torch.device("cpu")


@pytest.mark.parametrize("causal", [False, True])
def test_the_compiled_peer_is_the_same_function(causal: bool) -> None:
    q, k, v = (x.detach().double() for x in blocks._draw(128, CPU, torch.float32))
    exact = reference_blocks.linear_attention(q, k, v, causal=causal)
    torch.testing.assert_close(blocks.chunked(q, k, v, causal), exact)


def test_wrong_attention_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = blocks.providers(CPU)
    blocks.check(right["memformer_kernels"], CPU, torch.float32)
    wrong = {
        **right,
        "memformer_kernels": lambda q, k, v, causal: 1.01 * blocks.linear_attention(q, k, v, causal=causal),
    }
    monkeypatch.setattr(blocks, "providers", lambda device: wrong)
    with pytest.raises(RuntimeError, match="attention is wrong"):
        blocks.time_attention(CPU, (64,), 1)


def test_updates() -> None:
    timings = blocks.time_updates(CPU, 1, 2**14)
    assert len(timings) == 2 * 2 * len(blocks.REGISTERS)
    assert all(timing.ms > 0 and timing.of_copy > 0 for timing in timings)


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    record = tmp_path / "blocks.json"
    finished = CliRunner().invoke(app, ["blocks", "--quick", "--json", str(record)])
    assert finished.exit_code == 0, finished.output
    text = record.read_text()
    for word in ("scaled_dot_product_attention", "torch.compile", "memformer_kernels", "backward"):
        assert word in text
