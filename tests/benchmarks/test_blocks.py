"""Timing of attention and the register update: what is timed is right, and a record is made in parts."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.measure import attention as blocks
from benchmarks.measure.attention import AttentionCase, AttentionTiming, UpdateCase, UpdateTiming
from benchmarks.reports import attention_record as blocks_record
from memformer_kernels import reference

CPU = torch.device("cpu")


@pytest.mark.parametrize("causal", [False, True])
def test_the_compiled_peer_is_the_same_function(causal: bool) -> None:
    q, k, v = (x.detach().double() for x in blocks._draw(128, 32, CPU, torch.float32))
    exact = reference.linear_attention(q, k, v, causal=causal)
    torch.testing.assert_close(blocks.chunked(q, k, v, causal), exact)


def test_wrong_attention_is_not_timed() -> None:
    blocks.check(blocks.providers(CPU)["memformer_kernels"], CPU, torch.float32)
    with pytest.raises(RuntimeError, match="attention is wrong"):
        blocks.check(lambda q, k, v, causal: 1.01 * blocks.linear_attention(q, k, v, causal=causal), CPU, torch.float32)


@pytest.mark.parametrize("granularity", ["feature", "token"])
def test_both_passes_of_an_update_are_timed(granularity: str) -> None:
    threads = torch.get_num_threads()
    timings = blocks.time_update(UpdateCase(1, granularity, 2), CPU, 1, 2**14)
    assert [timing.name for timing in timings] == ["forward", "backward"]
    assert all(timing.ms > 0 and timing.of_copy > 0 for timing in timings)
    assert torch.get_num_threads() == threads


@pytest.fixture
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(case: AttentionCase, *_: object) -> list[AttentionTiming]:
        return [AttentionTiming(case, "memformer_kernels", 1.5, None)]

    def update(case: UpdateCase, *_: object) -> list[UpdateTiming]:
        return [UpdateTiming(case, "forward", 2.5, 0.95)]

    monkeypatch.setattr(blocks, "time_attention", attention)
    monkeypatch.setattr(blocks, "time_update", update)


@pytest.mark.usefixtures("_untimed")
def test_a_record_is_made_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "blocks.json"
    begun = blocks_record.proceed(path, CPU, True, -1.0)
    assert not begun.attention
    assert not path.exists()
    whole = blocks_record.proceed(path, CPU, True, 1e9)
    assert whole.missing == []
    assert blocks_record.read(path) == whole
    part = blocks_record.Record(whole.machine, True, whole.attention[:3], whole.updates[1:])
    blocks_record.write(path, part)
    again = blocks_record.proceed(path, CPU, True, 1e9)
    assert again.attention == whole.attention
    assert {timing.case for timing in again.updates} == {timing.case for timing in whole.updates}
    with pytest.raises(ValueError, match="another machine, revision or settings"):
        blocks_record.proceed(path, CPU, False, 1e9)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a record of blocks"):
        blocks_record.read(path)


@pytest.mark.usefixtures("_untimed")
def test_the_command_draws_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'memformer_kernels[lab]'")
    figure = tmp_path / "blocks.png"
    words = ["blocks", "--quick", "--json", str(tmp_path / "blocks.json"), "--figure", str(figure)]
    finished = CliRunner().invoke(app, words)
    assert finished.exit_code == 0, finished.output
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "0.95" in finished.output


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    record = tmp_path / "blocks.json"
    finished = CliRunner().invoke(app, ["blocks", "--quick", "--json", str(record)])
    assert finished.exit_code == 0, finished.output
    text = record.read_text()
    for word in ("scaled_dot_product_attention", "torch.compile", "memformer_kernels", "backward"):
        assert word in text
