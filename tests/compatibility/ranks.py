"""The columns that need processes: two of them, which serve one check after another."""

import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from tests.compatibility.concerns import close
from tests.compatibility.subjects import SUBJECTS, Subject, outcome, results, scalar

WORLD = 2


def _train(model: nn.Module, data: tuple[Tensor, ...]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        sum(x.square().mean() for x in results(model(*data))).backward()  # type: ignore[union-attr]
        optimizer.step()


def _alone(subject: Subject) -> list[Tensor]:
    """Parameters after training by one process on the data of all."""
    model = subject.model()
    if not subject.mean:
        _train(model, subject.data(4))
        return [x.detach() for x in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        # The square of a mean is no mean of squares: what the ranks minimise is the mean of theirs.
        optimizer.zero_grad()
        losses = [model(*(x.chunk(WORLD)[rank] for x in subject.data(4))) for rank in range(WORLD)]
        sum(x.square() / WORLD for x in losses).backward()  # type: ignore[union-attr]
        optimizer.step()
    return [x.detach() for x in model.parameters()]


def _share(subject: Subject) -> tuple[Tensor, ...]:
    return tuple(x.chunk(WORLD)[dist.get_rank()] for x in subject.data(4))


def data_parallel(subject: Subject) -> None:
    model = subject.model()
    _train(nn.parallel.DistributedDataParallel(model), _share(subject))
    close([x.detach() for x in model.parameters()], _alone(subject))


def fully_sharded(subject: Subject) -> None:
    from torch.distributed.fsdp import fully_shard

    model = subject.model()
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (WORLD,)))
    _train(model, _share(subject))
    close([x.full_tensor().detach() for x in model.parameters()], _alone(subject))  # type: ignore[attr-defined]


def distributed_tensors(subject: Subject) -> None:
    """Samples in shards, parameters on every process: the results of one process.

    Shards are of different sizes, except where torch's linear layers, which fold the samples, ask for equal ones.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (WORLD,))
    alone, model = subject.model(), subject.model()
    data = subject.data(4 if any(isinstance(part, nn.Linear) for part in model.modules()) else 5)
    distribute_module(model, mesh)
    given = [distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in data]
    made = model(*given)
    for result in results(made):
        assert isinstance(result, DTensor)
        assert result.placements[0] == Shard(0) or not result.ndim
        assert not isinstance(result.placements[0], Replicate)
    gradients = torch.autograd.grad(scalar(made), [*given, *model.parameters()])
    whole = [x.full_tensor().detach() for x in (*results(made), *gradients)]  # type: ignore[attr-defined]
    close(whole, outcome(alone, data, list(alone.parameters())))


CHECKS: dict[str, Callable[[Subject], None]] = {
    "DDP": data_parallel,
    "FSDP2": fully_sharded,
    "DTensor": distributed_tensors,
}


def check(column: str, row: str) -> None:
    """A cell's check, on one of the processes."""
    from tests.compatibility import training

    if row == training.ROW:
        training.CHECKS[column]()
    else:
        CHECKS[column](SUBJECTS[row])


def _serve(rank: int, folder: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    while True:
        work = connection.recv()
        if work is None:
            break
        try:
            work()
            connection.send(None)
        except Exception as error:
            connection.send((f"{type(error).__name__}: {error}", traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """Two forked processes of one group."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context: Any = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(WORLD)]
        self._ends = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, str(Path(self._folder.name)), theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def run(self, work: Callable[[], None]) -> None:
        """Has every process do the work, a function that its module knows; raises AssertionError with their error."""
        for end in self._ends:
            end.send(work)
        answers = []
        for rank, end in enumerate(self._ends):
            assert end.poll(120), f"rank {rank} does not answer"
            answers.append(end.recv())
        for rank, failed in enumerate(answers):
            assert failed is None, f"rank {rank}: {failed[0]}\n{failed[1]}"

    def stop(self) -> None:
        """Ends the processes."""
        for end, process in zip(self._ends, self._processes, strict=True):
            if process.is_alive():
                end.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()
