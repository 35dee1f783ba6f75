"""One rank of the distributed tests: started by torchrun or alike, writes what it saw as safetensors and JSON.

worker.py FOLDER MODE, with MODE "traces" (data-parallel and split contexts, then rank 1 is killed) or "stops" (rank 1
stops answering).
"""

import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed

from memformer_kernels import RankLost, predict_split_context, train_steps
from memformer_lab.runs.state_file import save_state
from tests.memformer_kernels.training import parallel_runs as runs

TIMEOUT = 4.0


def main(folder: Path, mode: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    group = distributed.group.WORLD
    if mode == "traces":
        saved = {}
        for name, (state, sampler, backend) in runs.data_parallel().items():
            saved[f"trace.{name}"] = train_steps(
                state, sampler, runs.STEPS, optimizer=runs.OPTIMIZER, backend=backend, group=group
            )
            saved |= {f"{name}.{key}": value for key, value in state.parameters.items()}
        for name, case in runs.split_contexts().items():
            part = case.slices(size)[rank]
            own = case.z[:, part].clone().requires_grad_()
            queries = case.queries.clone().requires_grad_()
            leaves = {key: value.clone().requires_grad_() for key, value in case.parameters.items()}
            predictions = predict_split_context(own, queries, **leaves, group=group)
            loss = (predictions - case.target).square().mean()
            loss.backward()
            saved |= {f"{name}.predictions": predictions.detach(), f"{name}.loss": loss.detach()}
            saved |= {f"{name}.grad.{key}": value.grad for key, value in leaves.items()}
            saved |= {f"{name}.grad.z": own.grad, f"{name}.grad.queries": queries.grad}
        state, sampler, backend = runs.data_parallel()["tokens"]
        state.parameters["q"][0, 0, 0, 0, 0] += 1e-9 * rank
        try:
            train_steps(state, sampler, 1, optimizer=runs.OPTIMIZER, backend=backend, group=group)
        except ValueError as error:
            (folder / f"apart{rank}.txt").write_text(str(error), encoding="utf-8")
        save_file({key: value.contiguous() for key, value in saved.items()}, folder / f"rank{rank}.safetensors")
    state, sampler, backend = runs.data_parallel()["statistics"]
    begin = 0.0
    try:
        for step in range(runs.STEPS):
            if step == runs.FATAL and rank == size - 1:
                os.kill(os.getpid(), signal.SIGKILL if mode == "traces" else signal.SIGSTOP)
            begin = time.monotonic()
            train_steps(state, sampler, 1, optimizer=runs.OPTIMIZER, backend=backend, group=group)
            if rank == 0:
                save_state(folder / "state.safetensors", state)
    except RankLost as error:
        report = {"error": str(error), "seconds": time.monotonic() - begin, "step": state.step}
        (folder / f"rank{rank}.json").write_text(json.dumps(report), encoding="utf-8")
        # Tearing the group down would wait for the rank that is gone.
        os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
