"""DistributedDataParallel and FSDP2 on two CPU processes: training is that of one process on all samples."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from tests.memformer_kernels.own_models.models import MODELS, assert_same, model, tokens

WORLD = 2


def _step(module: nn.Module, z: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(z).square().mean().backward()
        optimizer.step()


def _shares(rank: int) -> torch.Tensor:
    return tokens(4).chunk(WORLD)[rank]


def _data_parallel(rank: int, made: nn.Module, folder: Path) -> None:
    wrapped = nn.parallel.DistributedDataParallel(made)
    _step(wrapped, _shares(rank))
    if rank == 0:
        torch.save(made.state_dict(), folder / "state.pt")


def _fully_sharded(rank: int, made: nn.Module, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (WORLD,))
    for child in next(iter(made.children())).children():
        fully_shard(child, mesh=mesh)
    fully_shard(made, mesh=mesh)
    assert all(hasattr(parameter, "placements") for parameter in made.parameters())
    _step(made, _shares(rank))
    state = get_model_state_dict(made, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(state, folder / "state.pt")


def _work(rank: int, run: Callable[[int, nn.Module, Path], None], name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD)
    try:
        run(rank, model(name), folder)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("run", [_data_parallel, _fully_sharded], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_train_as_one(name: str, run: Callable[[int, nn.Module, Path], None], tmp_path: Path) -> None:
    multiprocessing.start_processes(_work, (run, name, tmp_path), nprocs=WORLD, start_method="fork")
    alone = model(name)
    _step(alone, tokens(4))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state.keys() == alone.state_dict().keys()
    assert_same([state[key] for key in state], [alone.state_dict()[key] for key in state])
