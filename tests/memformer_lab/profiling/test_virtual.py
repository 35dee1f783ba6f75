"""A call profiled on a virtual GPU: its kernels' counters, the command, and what neither serves."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memformer_lab.cli import app
from memformer_lab.profiling.call import Call
from memformer_lab.profiling.virtual import GPU, profile_virtually
from virtual_gpu import build, native
from virtual_gpu.hardware import find_ptxas

compiled = [pytest.mark.compiled, pytest.mark.skipif(find_ptxas() is None, reason="no ptxas to allocate registers")]


def marked(*values: object) -> object:
    return pytest.param(*values, marks=compiled)


@pytest.mark.parametrize(
    ("call", "kernels"),
    [
        marked(Call(batch=16, n=8, layers=2, direction="forward"), ["solve_kernel"]),
        marked(Call(batch=16, n=8, layers=1), ["solve_backward_kernel", "sum_kernel"]),
    ],
)
def test_a_profile_holds_what_the_kernels_did(call: Call, kernels: list[str]) -> None:
    found = profile_virtually(call)
    assert [use.kernel for use in found.uses] == kernels
    assert (found.call.backend, found.algorithm, found.reports) == ("triton", "gram", ())
    first = found.uses[0]
    assert found.floor == 4 * (9 * 6 + 1)
    assert first.counters.global_bytes_read >= call.batch * found.floor - 4 * call.batch
    assert first.prediction.seconds == pytest.approx(
        1e-9 * found.predicted_ns(first) * call.batch * GPU.multiprocessors
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Call(backend="cuda"), "runs the backend triton here, not cuda"),
        (Call(backend="cpu"), "not cpu"),
        (Call(device="cuda"), "tensors of the CPU"),
    ],
)
def test_a_call_that_is_not_served_is_refused(call: Call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        profile_virtually(call)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled in this process")
def test_where_kernels_are_interpreted_the_reason_is_told() -> None:
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        profile_virtually(Call(batch=2))


def test_where_the_machine_cannot_be_built_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise build.BuildFailed("no C++ compiler was found")

    native.library.cache_clear()
    monkeypatch.setattr(build, "library", fail)
    with pytest.raises(ValueError, match=r"on a virtual GPU: no C\+\+ compiler"):
        profile_virtually(Call(batch=2))
    native.library.cache_clear()


@pytest.mark.compiled
@pytest.mark.skipif(find_ptxas() is None, reason="no ptxas to allocate registers")
def test_the_command_prints_it_all() -> None:
    words = ["profile", "--virtual", "--batch", "16", "--n", "8", "--layers", "2", "--direction", "forward"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for part in ("B = 16", "virtual H200", "solve_kernel", "bytes read", "bound by", "no hardware has confirmed one"):
        assert part in done.output


def test_a_trace_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["profile", "--virtual", "--trace", str(tmp_path / "trace.json")])
    assert done.exit_code == 2
    assert "keeps no time" in done.output
