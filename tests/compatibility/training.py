"""The row of `train_steps`, which has a state in place of data and takes no derivative."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from memformer_kernels import Adam, GaussianStatistics, TrainState, train_steps
from memformer_kernels.nn import Memformer
from tests.compatibility.concerns import close, in_a_child, interrupted_after

ROW = "train_steps"
STEPS = 5
TASKS = GaussianStatistics(3, 8, batch=1500, query="integrated")
OPTIMIZER = Adam(0.01)


def _model() -> Memformer:
    torch.manual_seed(0)
    return Memformer(3, 2, dtype=torch.float64)


def _state() -> TrainState:
    return TrainState.of([_model().stack_arguments()], seeds=1)


def _losses(state: TrainState | None = None, steps: int = STEPS) -> Tensor:
    return train_steps(_state() if state is None else state, TASKS, steps, optimizer=OPTIMIZER)


def compiled() -> None:
    torch.testing.assert_close(torch.compile(_losses, backend="aot_eager")(_state()), _losses(), rtol=0, atol=0)


def without_derivative() -> None:
    """The state holds detached copies: losses require no gradient, and none reaches what the state was made from."""
    q = _model().q

    def trained(start: Tensor) -> Tensor:
        losses = _losses(TrainState.of([{"q": start}], seeds=1))
        assert not losses.requires_grad
        return losses.sum() + 0 * start.sum()

    assert not torch.autograd.grad(trained(q), q)[0].any()
    assert not torch.func.grad(trained)(q.detach()).any()


def autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = _losses()
    torch.testing.assert_close(made, _losses(), rtol=0, atol=0)


def exported() -> None:
    state = _state()

    class Trainer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + _losses(state).sum()

    torch.export.export(Trainer(), (torch.ones(1),))


def traced() -> None:
    class Trainer(nn.Module):
        def forward(self, steps: int) -> Tensor:
            return _losses(steps=steps)

    torch.fx.symbolic_trace(Trainer())


def data_parallel() -> None:
    from torch import distributed

    made = train_steps(_state(), TASKS, STEPS, optimizer=OPTIMIZER, group=distributed.group.WORLD)
    torch.testing.assert_close(made, _losses(), rtol=0, atol=0)


def fully_sharded() -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    model = _model()
    fully_shard(model, mesh=distributed.init_device_mesh("cpu", (2,)))
    TrainState.of([model.stack_arguments()], seeds=1)


def distributed_tensors() -> None:
    from torch import distributed
    from torch.distributed.tensor import distribute_module

    TrainState.of([distribute_module(_model(), distributed.init_device_mesh("cpu", (2,))).stack_arguments()], seeds=1)


def forked() -> None:
    expected = _losses()

    def child() -> None:
        torch.set_num_threads(1)
        torch.testing.assert_close(_losses(), expected, rtol=0, atol=0)

    assert in_a_child(child)


def threaded() -> None:
    expected, states = _losses(), [_state() for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(_losses, states):
            torch.testing.assert_close(made, expected, rtol=0, atol=0)


def signalled() -> None:
    """An interrupted run ends within 2 s with a state that goes on to the exact trace."""
    state, whole = _state(), _state()
    with interrupted_after(0.3):
        _losses(state, 100_000)
    assert 0 < state.step < 100_000
    _losses(state, STEPS)
    _losses(whole, state.step)
    close([*state.parameters.values(), *state.first.values()], [*whole.parameters.values(), *whole.first.values()])


CHECKS: dict[str, Callable[[], None]] = {
    "compile": compiled,
    "compile of torch.func": without_derivative,
    "torch.func": without_derivative,
    "legacy vmap": without_derivative,
    "autocast": autocast,
    "checkpoint": without_derivative,
    "export": exported,
    "fx": traced,
    "DDP": data_parallel,
    "FSDP2": fully_sharded,
    "DTensor": distributed_tensors,
    "fork": forked,
    "threads": threaded,
    "signals": signalled,
}
