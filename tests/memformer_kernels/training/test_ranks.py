"""Several processes: the trace of one, the gradients of one, and a clear word when one of them dies.

Processes are started as torchrun starts them; one pair serves all quick tests.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed

from memformer_kernels import memformer_predict, predict_split_context, train_steps
from memformer_kernels.training.ranks import Ranks
from memformer_lab.runs.state_file import load_state
from tests.memformer_kernels.training import parallel_runs as runs
from tests.memformer_kernels.training.runs import model
from tests.memformer_kernels.training.worker import TIMEOUT

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch has no distributed package")
ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("worker.py")


def _environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _start(folder: Path, mode: str, ranks: int) -> list["subprocess.Popen[str]"]:
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), mode],
            env={**_environment(), "RANK": str(rank), "WORLD_SIZE": str(ranks)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def _finish(processes: list["subprocess.Popen[str]"], lost: int) -> None:
    """Waits for all but the rank that is lost on purpose."""
    for rank, process in enumerate(processes):
        if rank != lost:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    processes = _start(folder, "traces", 2)
    _finish(processes, lost=1)
    processes[1].communicate(timeout=60)
    assert processes[1].returncode == -signal.SIGKILL
    return folder


def _assert_the_traces_of_one_process(folder: Path, ranks: int) -> None:
    """Bit for bit, on every rank and whatever the backend, since blocks are added in order."""
    saved = [load_file(folder / f"rank{rank}.safetensors") for rank in range(ranks)]
    for name, (state, sampler, backend) in runs.data_parallel().items():
        trace = train_steps(state, sampler, runs.STEPS, optimizer=runs.OPTIMIZER, backend=backend)
        for held in saved:
            assert torch.equal(held[f"trace.{name}"], trace)
            assert all(torch.equal(held[f"{name}.{key}"], value) for key, value in state.parameters.items())


def test_two_ranks_have_the_trace_of_one(pair: Path) -> None:
    _assert_the_traces_of_one_process(pair, 2)


@pytest.mark.parametrize("name", list(runs.split_contexts()))
def test_a_split_context_has_the_loss_and_gradients_of_a_whole_one(pair: Path, name: str) -> None:
    case = runs.split_contexts()[name]
    z, queries = case.z.clone().requires_grad_(), case.queries.clone().requires_grad_()
    leaves = {key: value.clone().requires_grad_() for key, value in case.parameters.items()}
    whole = torch.cat([z, queries], 1)
    predictions = memformer_predict(whole, **leaves, context=z.shape[1], backend="torch")
    loss = (predictions - case.target).square().mean()
    loss.backward()
    for rank, part in enumerate(case.slices(2)):
        saved = load_file(pair / f"rank{rank}.safetensors")

        def same(key: str, expected: Tensor, saved: dict[str, Tensor] = saved) -> None:
            torch.testing.assert_close(saved[f"{name}.{key}"], expected, rtol=1e-10, atol=1e-12)

        same("predictions", predictions.detach())
        same("loss", loss.detach())
        for key, value in leaves.items():
            assert value.grad is not None
            same(f"grad.{key}", value.grad)
        assert z.grad is not None
        assert queries.grad is not None
        same("grad.z", z.grad[:, part])
        same("grad.queries", queries.grad)


def test_ranks_with_different_states_are_refused(pair: Path) -> None:
    for rank in range(2):
        said = (pair / f"apart{rank}.txt").read_text(encoding="utf-8")
        assert said.startswith("state: expected the same state, batch and steps on every rank")
        assert f"on rank {1 - rank} than on rank {rank}" in said


def _assert_lost(report: dict[str, Any], seconds: float) -> None:
    assert report["step"] == runs.FATAL
    assert report["seconds"] < seconds
    assert "rank 0 of 2: another rank died or did not answer" in report["error"]
    assert "from the last checkpoint" in report["error"]


def test_a_rank_that_dies_is_reported_and_the_run_resumes(pair: Path) -> None:
    """Within the group's timeout; the state that was saved goes on to the trace of a run that lost nobody."""
    _assert_lost(json.loads((pair / "rank0.json").read_text(encoding="utf-8")), TIMEOUT + 1)
    state, _ = load_state(pair / "state.safetensors")
    assert state.step == runs.FATAL
    _, sampler, backend = runs.data_parallel()["statistics"]
    rest = train_steps(state, sampler, runs.STEPS - runs.FATAL, optimizer=runs.OPTIMIZER, backend=backend)
    assert torch.equal(rest, load_file(pair / "rank0.safetensors")["trace.statistics"][runs.FATAL :])


@pytest.mark.slow
def test_a_rank_that_stops_answering_is_reported_within_the_timeout(tmp_path: Path) -> None:
    processes = _start(tmp_path, "stops", 2)
    begin = time.monotonic()
    _finish(processes, lost=1)
    assert time.monotonic() - begin < 60
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate(timeout=60)
    _assert_lost(json.loads((tmp_path / "rank0.json").read_text(encoding="utf-8")), TIMEOUT + 3)


@pytest.mark.slow
def test_three_ranks_have_the_trace_of_one(tmp_path: Path) -> None:
    processes = _start(tmp_path, "traces", 3)
    _finish(processes, lost=2)
    processes[2].communicate(timeout=60)
    _assert_the_traces_of_one_process(tmp_path, 3)


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """The launcher itself, whose ranks end well here."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from torch import distributed\n"
        "from memformer_kernels import train_steps\n"
        "from tests.memformer_kernels.training import parallel_runs as runs\n"
        "distributed.init_process_group('gloo')\n"
        "state, sampler, backend = runs.data_parallel()['statistics']\n"
        "group = distributed.group.WORLD\n"
        "trace = train_steps(state, sampler, runs.STEPS, optimizer=runs.OPTIMIZER, backend=backend, group=group)\n"
        "if distributed.get_rank() == 0:\n"
        "    print(trace.tolist())\n"
        "distributed.destroy_process_group()\n",
        encoding="utf-8",
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    done = subprocess.run(launcher, env=_environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    state, sampler, backend = runs.data_parallel()["statistics"]
    expected = train_steps(state, sampler, runs.STEPS, optimizer=runs.OPTIMIZER, backend=backend)
    assert json.loads(done.stdout) == expected.tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("blocks", [0, 1, 5, 14])
def test_ranks_share_blocks_evenly_and_in_order(size: int, blocks: int) -> None:
    ranks = Ranks(None)
    ranks.size = size
    shares = [ranks.share(blocks, rank) for rank in range(size)]
    assert [block for share in shares for block in share] == list(range(blocks))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_bad_arguments_of_a_split_context() -> None:
    parameters = {name: value for name, value in model().items() if value is not None}
    queries = torch.zeros(2, 1, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^z: expected labelled tokens"):
        predict_split_context(torch.zeros(3, 5, 4, dtype=torch.float64), queries, **parameters)
    gamma = torch.full((3, 3, 1, 2, 4), math.pi, dtype=torch.float64)
    tokens = torch.zeros(2, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^gamma or beta: expected none"):
        predict_split_context(tokens, tokens, parameters["q"], gamma=gamma)
