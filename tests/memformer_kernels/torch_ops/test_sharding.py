"""DTensors, tensor parallelism and sharded starts on two processes, beside what the table of compatibility shows."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from memformer_kernels import context_gram, memformer_loss, memformer_predict, register_update
from memformer_kernels.nn import Memformer, MemformerAttention, MemformerLayer, RegisterMemory
from tests.compatibility.ranks import WORLD, Ranks
from tests.compatibility.subjects import SUBJECTS, outcome, results, scalar
from tests.memformer_kernels.cases import make_case, normal, seeded


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.stop()


def _close(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


def _mesh() -> Any:
    return dist.init_device_mesh("cpu", (WORLD,))


def _spread(tensor: Tensor, *placements: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    made: Tensor = distribute_tensor(tensor.detach(), _mesh(), placements).requires_grad_()
    return made


def _placements(of_tasks: tuple[Any, ...], of_parameters: tuple[Any, ...], tasks: int) -> None:
    """The loss and its gradients are those of one process, whatever the placements."""
    case = make_case(tasks=tasks, context=5)
    tensors = [case.z, normal(seeded(1), tasks, 2), case.q, case.p, case.gamma]
    data, parameters = tensors[:2], tensors[2:]
    given = [*(_spread(x, *of_tasks) for x in data), *(_spread(x, *of_parameters) for x in parameters)]
    loss = memformer_loss(*given, context=5)
    gradients = torch.autograd.grad(loss, given)
    plain = [x.detach().requires_grad_() for x in tensors]
    expected = memformer_loss(*plain, context=5)
    _close([x.full_tensor() for x in (loss, *gradients)], [expected, *torch.autograd.grad(expected, plain)])


def _every_placement() -> None:
    from torch.distributed.tensor import Replicate, Shard

    _placements((Shard(0),), (Replicate(),), 5)
    _placements((Shard(0),), (Replicate(),), 1)  # a process without a task
    _placements((Shard(1),), (Shard(0),), 5)
    _placements((Replicate(),), (Replicate(),), 5)


def test_the_mean_is_over_all_tasks_whatever_their_placement(ranks: Ranks) -> None:
    ranks.run(_every_placement)


def _kinds_of_gradients() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.debug import CommDebugMode

    case = make_case(tasks=4, context=5)
    z, q = _spread(case.z, Shard(0)), _spread(case.q, Replicate())
    loss = memformer_loss(z, _spread(normal(seeded(1), 4, 2), Shard(0)), q, context=5)
    assert loss.placements == (Partial(),)
    with CommDebugMode() as exchanged:
        grad_z, grad_q = torch.autograd.grad(loss, (z, q))
    assert (grad_z.placements, grad_q.placements) == ((Shard(0),), (Partial(),))
    with exchanged:
        assert memformer_predict(z, q, context=5).placements == (Shard(0),)
        assert memformer_predict(z, q, context=5, layers=True).placements == (Shard(1),)
        assert context_gram(z).placements == (Shard(0),)
    assert exchanged.get_total_counts() == 0


def test_sharded_tasks_exchange_nothing_and_what_they_share_gets_sums(ranks: Ranks) -> None:
    ranks.run(_kinds_of_gradients)


def _mixed() -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    case = make_case(tasks=4, context=5)
    z, q = _spread(case.z, Shard(0)), _spread(case.q, Replicate())
    with pytest.raises(TypeError, match=r"^q: expected a DTensor, as z is, got a plain tensor of shape"):
        memformer_predict(z, case.q, context=5)
    with pytest.raises(TypeError, match=r"^context: expected a DTensor, as z is, got a plain tensor of shape \(4,\)"):
        memformer_predict(z, q, context=torch.tensor([3, 4, 5, 5]))
    with pytest.raises(TypeError, match=r"^registers: expected a DTensor, as z is"):
        register_update(z, [case.z], _spread(torch.ones(1, dtype=torch.float64), Replicate()))
    elsewhere = distribute_tensor(case.q, dist.init_device_mesh("cpu", (1, WORLD)), [Replicate(), Replicate()])
    with pytest.raises(ValueError, match=r"^q: expected a DTensor on .*, where z is, got one on "):
        memformer_predict(z, elsewhere, context=5)


def test_plain_tensors_beside_dtensors_are_refused(ranks: Ranks) -> None:
    ranks.run(_mixed)


def _compiled(row: str) -> None:
    from torch.distributed.tensor import Shard, distribute_module

    subject = SUBJECTS[row]
    model, data = subject.model(), subject.data(4)
    expected = outcome(model, data, list(model.parameters()))
    distribute_module(model, _mesh())
    given = [_spread(x, Shard(0)) for x in data]
    made = torch.compile(model, fullgraph=True, backend="aot_eager")(*given)
    gradients = torch.autograd.grad(scalar(made), [*given, *model.parameters()])
    _close([x.full_tensor().detach() for x in (*results(made), *gradients)], expected)


@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.12", reason="torch 2.11's compiler traces no DTensor whole")
@pytest.mark.parametrize("row", ["memformer_loss", "memformer_layer", "register_update"])
def test_compiled_with_dtensors(ranks: Ranks, row: str) -> None:
    ranks.run(partial(_compiled, row))


def _tensor_parallel() -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def layer() -> MemformerAttention:
        torch.manual_seed(0)
        return MemformerAttention(8, 4, causal=True, memory="lfom", norm=True, dtype=torch.float64)

    alone, model = layer(), layer()
    columns = {name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    parallelize_module(model, _mesh(), {**columns, "o_proj": RowwiseParallel()})
    z = normal(seeded(2), 3, 5, 8)
    (made, _), (expected, _) = model(z), alone(z)
    _close(made, expected)
    made.square().sum().backward()
    expected.square().sum().backward()
    for name in ("q_proj", "o_proj"):
        _close(getattr(model, name).weight.grad.full_tensor(), getattr(alone, name).weight.grad)
    start = model.initial_state(3)
    assert start.sum.shape == (3, 4 // WORLD, 2, 2)
    _close(model.step(z[:, 0], (), start)[0], alone(z[:, :1])[0][:, 0])


def test_attention_heads_are_those_of_the_rank(ranks: Ranks) -> None:
    ranks.run(_tensor_parallel)


def test_heads_that_a_rank_cannot_hold_whole_are_refused() -> None:
    layer = MemformerAttention(8, 4)
    layer.k_proj = nn.Linear(8, 3, bias=False)
    with pytest.raises(ValueError, match="num_heads: expected whole heads of 2 on every rank, got projections of 3"):
        layer(torch.randn(1, 3, 8))


def _sharded_start() -> None:
    from torch.distributed.fsdp import fully_shard

    for make in (
        lambda: Memformer(3, 4, heads=2, rule="lfom", structure="dense"),
        lambda: Memformer(3, 3, heads=2, rule="gated_heads", structure="block"),
        lambda: MemformerLayer(3, registers=2, momentum=True),
        lambda: RegisterMemory(4, 3),
    ):
        torch.manual_seed(3)
        alone = make()
        with torch.device("meta"):
            model = make()
        fully_shard(model, mesh=_mesh())
        model.to_empty(device="cpu")
        torch.manual_seed(3 + dist.get_rank())  # the first process draws
        model.reset_parameters()
        _close([x.full_tensor().detach() for x in model.parameters()], [x.detach() for x in alone.parameters()])


def test_sharded_parameters_start_as_those_of_one_process(ranks: Ranks) -> None:
    ranks.run(_sharded_start)


def test_importing_brings_in_neither_dtensors_nor_the_counter() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import memformer_kernels; new = set(sys.modules) - before; "
        "assert not {'torch.distributed.tensor', 'torch.utils.flop_counter', 'triton'} & new, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
