"""What users of PyTorch rely on, of the blocks: compilers, autocast, transforms, export, copies, precision, modes."""

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from memformer_kernels import AttentionState, linear_attention, register_update
from memformer_kernels.nn import MemformerAttention
from tests.marks import slow_but
from tests.memformer_kernels.own_models.models import MODELS, Stack, assert_same, gradients, model, tokens
from tests.memformer_kernels.own_models.options import BACKENDS, OPTIONS, heads, tokens_and_registers

on_every_model = pytest.mark.parametrize("name", MODELS)
on_some_models = pytest.mark.parametrize("name", slow_but(["causal"], MODELS))


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@on_some_models
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_whole_once_for_many_batches_and_lengths(name: str) -> None:
    made = model(name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(made, fullgraph=True, backend=counter)
    for batch, count in ((2, 10), (3, 17), (5, 70), (4, 131), (7, 9)):
        z = tokens(batch, count)
        out = compiled(z)
        exact = made(z)
        assert_same([out, *gradients(made, out)], [exact, *gradients(made, exact)])
    assert counter.frame_count <= 2


@on_every_model
@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_through_inductor(name: str) -> None:
    made, z = model(name), tokens()
    out = torch.compile(made, fullgraph=True)(z)
    exact = made(z)
    assert_same([out, *gradients(made, out)], [exact, *gradients(made, exact)])


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("option", slow_but(["ragged", "causal mask", "packed"], OPTIONS))
def test_every_option_compiles(option: str) -> None:
    options = OPTIONS[option](2, 12)
    leaves = heads(2, 12, 4)

    def attend(*tensors: Tensor) -> Tensor:
        return linear_attention(*tensors, **options)

    out = torch.compile(attend, fullgraph=True, backend="aot_eager")(*leaves)
    exact = attend(*leaves)
    torch.testing.assert_close(out, exact)
    made = torch.autograd.grad(out.square().sum(), leaves)
    assert_same(made, torch.autograd.grad(exact.square().sum(), leaves), 1e-9, 1e-9)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_code_checks_bounds_when_it_runs() -> None:
    q, k, v = heads(1, 12, 4)
    attend = torch.compile(lambda ends: linear_attention(q, k, v, cu_seqlens=ends), fullgraph=True, backend="aot_eager")
    attend(torch.tensor([0, 4, 12]))
    # torch 2.11 traces through the operation, so that its own check of an index comes first.
    refused = r"cu_seqlens: expected bounds that rise from 0 to N = 12|out of bounds"
    with pytest.raises((ValueError, IndexError), match=refused):
        attend(torch.tensor([0, 40, 12]))


@on_every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """Float32 parameters and gradients; products in half precision, sums over tokens not."""
    made, z = model(name), tokens()
    with torch.autocast("cpu", dtype=dtype):
        out = made(z)
    grads = gradients(made, out)
    assert out.dtype == torch.float32
    assert all(x.dtype == torch.float32 for x in grads)
    exact = made(z)
    close = 0.1 if dtype == torch.bfloat16 else 0.02
    for ours, value in zip([out, *grads], [exact, *gradients(made, exact)], strict=True):
        ours, value = ours.detach(), value.detach()
        assert float((ours - value).norm()) <= close * float(value.norm()) + 1e-6


def test_autocast_brings_the_functions_arguments_together() -> None:
    q, k, v = (x.detach().float() for x in heads(2, 9, 4))
    z, registers, gamma = (x for x in tokens_and_registers((2, 3), (1, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_attention(q.bfloat16(), k, v).dtype == torch.bfloat16
        update = register_update(z.float(), [registers[0].bfloat16()], gamma.float())
    assert update.dtype == torch.float32


@on_every_model
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    made, z = model(name), tokens()
    plain = gradients(made, made(z))
    leaf = z.clone().requires_grad_()
    out = checkpoint(made, leaf, use_reentrant=reentrant)
    made.zero_grad()
    out.square().sum().backward()
    assert_same([p.grad for p in made.parameters() if p.grad is not None], plain)


@on_every_model
def test_gradients_per_sample(name: str) -> None:
    """torch.func: functional_call, grad and vmap together equal a loop."""
    made, z = model(name), tokens(3)
    parameters = {key: value.detach() for key, value in made.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(made, parameters, (sample[None],)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, z)
    for index in range(3):
        alone = grad(loss)(parameters, z[index])
        assert_same([x[index] for x in together.values()], list(alone.values()))


@on_every_model
def test_an_ensemble_by_vmap(name: str) -> None:
    members = [model(name, seed) for seed in range(2)]
    parameters, buffers = torch.func.stack_module_state(members)
    z = tokens()

    def forward(parameters: Any, buffers: Any) -> Tensor:
        made: Tensor = functional_call(members[0], (parameters, buffers), (z,))
        return made

    for made, member in zip(vmap(forward)(parameters, buffers), members, strict=True):
        assert_same([made], [member(z)])


@pytest.mark.parametrize("option", OPTIONS)
def test_vmap_over_samples(option: str) -> None:
    options = OPTIONS[option](2, 12)
    q, k, v = (torch.stack([x.detach(), 2 * x.detach()]) for x in heads(2, 12, 4))
    together = vmap(lambda *x: linear_attention(*x, **options))(q, k, v)
    for index in range(2):
        torch.testing.assert_close(together[index], linear_attention(q[index], k[index], v[index], **options))


@on_every_model
def test_double_backward(name: str) -> None:
    """Derivatives of gradients are those of finite differences: not zero, not silent."""
    made = model(name).double()
    z = tokens().double().requires_grad_()
    (first,) = torch.autograd.grad(made(z).square().sum(), z, create_graph=True)
    direction = tokens(seed=5).double()
    (second,) = torch.autograd.grad((first * direction).sum(), z)

    def slope(at: Tensor) -> Tensor:
        return torch.autograd.grad(made(at).square().sum(), at)[0]

    step = 1e-5
    exact = (slope(z + step * direction) - slope(z - step * direction)) / (2 * step)
    torch.testing.assert_close(second, exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))


@on_some_models
def test_export_serves_every_batch_and_length(name: str) -> None:
    made = model(name)
    dynamic = {"z": {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=4096)}}
    program = torch.export.export(made, (tokens(2, 70),), dynamic_shapes=dynamic)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("memformer" in target for target in called), "an exported program needs PyTorch alone"
    for batch, count in ((1, 2), (2, 64), (3, 130)):
        assert_same([program.module()(tokens(batch, count))], [made(tokens(batch, count))])


def test_a_step_exports_and_can_be_stored(tmp_path: Path) -> None:
    layer = MemformerAttention(16, 2, causal=True, memory="lfom")

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, z: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            z, _, state = self.layer.step(z, [], AttentionState(total, count))
            return z, state.sum, state.tokens

    state = layer.initial_state(3)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Step(), (tokens(3)[:, 0], *state), dynamic_shapes=({0: batch},) * 3)
    path = tmp_path / "step.pt2"
    torch.export.save(program, path)
    step = torch.export.load(path).module()
    z, whole = tokens(4), layer(tokens(4))[0]
    carried = tuple(layer.initial_state(4))
    for place in range(9):
        out, *carried = step(z[:, place], *carried)
        assert_same([out], [whole[:, place]])


@pytest.mark.slow
@on_every_model
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'memformer_kernels[test]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    made = model(name).eval()
    dynamic = {"z": {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=4096)}}
    program = torch.onnx.export(made, (tokens(2, 70),), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, count in ((1, 2), (3, 130)):
        (out,) = session.run(None, {session.get_inputs()[0].name: tokens(batch, count).numpy()})
        assert_same([torch.from_numpy(out)], [made(tokens(batch, count)).detach()], 1e-3, 1e-4)


@on_every_model
def test_state_dict_round_trip(name: str) -> None:
    made, other = model(name), model(name, seed=1)
    assert not torch.equal(made(tokens()), other(tokens()))
    assert other.load_state_dict(made.state_dict(), strict=True).missing_keys == []
    assert torch.equal(made(tokens()), other(tokens()))


@on_every_model
def test_meta_device(name: str) -> None:
    """Made without memory, then given some and its start."""
    with torch.device("meta"):
        empty = model(name)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty(tokens().to("meta")).shape == tokens().shape
    filled = empty.to_empty(device="cpu")
    for module in filled.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert filled(tokens()).isfinite().all()
    made = model(name)
    empty.load_state_dict(made.state_dict(), assign=True)
    assert torch.equal(empty(tokens()), made(tokens()))


def test_reset_parameters_starts_anew() -> None:
    torch.manual_seed(0)
    layer = MemformerAttention(16, 2, memory="cgd", registers=1, norm=True, prenorm=True)
    start = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(0)
    layer.reset_parameters()
    assert all(torch.equal(value, start[key]) for key, value in layer.state_dict().items())


@on_every_model
def test_copies_and_pickles(name: str) -> None:
    made = model(name)
    stored = io.BytesIO()
    pickle.dump(made, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(made), pickle.load(stored)):
        assert torch.equal(twin(tokens()), made(tokens()))
        before = made(tokens())
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert torch.equal(made(tokens()), before)


@on_every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_load(name: str, dtype: torch.dtype) -> None:
    made = model(name)
    exact = made(tokens())
    half = model(name, seed=1).to(dtype)
    half.load_state_dict({key: value.to(dtype) for key, value in made.state_dict().items()})
    out = half(tokens().to(dtype))
    assert out.dtype == dtype
    assert float((out.float() - exact).norm()) < (0.1 if dtype == torch.bfloat16 else 0.02) * float(exact.norm())
    assert all(x.dtype == dtype and x.isfinite().all() for x in gradients(half, out))


@on_every_model
def test_deterministic_mode_and_repeatability(name: str) -> None:
    made, z = model(name), tokens(3, 150)
    torch.use_deterministic_algorithms(True)
    runs = []
    for _ in range(2):
        out = made(z)
        runs.append([out, *gradients(made, out)])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@on_every_model
def test_training_and_evaluation_are_alike(name: str) -> None:
    made = model(name)
    with torch.no_grad():
        assert torch.equal(made.train()(tokens()), made.eval()(tokens()))
    with torch.inference_mode():
        assert torch.equal(made(tokens()), made.train()(tokens()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_operations_pass_opcheck(backend: str) -> None:
    """Schema, fakes, autograd and compilation as PyTorch itself checks them."""
    ops = torch.ops.memformer_kernels
    z, registers, gamma = tokens_and_registers((2, 5, 4), (2, 5))
    torch.library.opcheck(ops.register_update.default, (z, registers, gamma, backend))
    q, k, v = heads(2, 9, 4, 3)
    weights = torch.ones(2, 9, dtype=torch.float64)
    for form in ("full", "causal"):
        arguments = (q, k, v, weights, weights, None, form, backend)
        torch.library.opcheck(ops.linear_attention.default, arguments)
    bounds = torch.tensor([0, 4, 9])
    torch.library.opcheck(ops.linear_attention.default, (q, k, v, weights, None, bounds, "causal", backend))


def test_training_improves() -> None:
    """Twenty steps on one batch, causal, with memory: every parameter moves and the loss falls by half."""
    torch.manual_seed(0)
    made, z = Stack(causal=True), tokens(4, 30)
    target = z.roll(1, 1)
    before = [parameter.detach().clone() for parameter in made.parameters()]
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (made(z)[:, 1:] - target[:, 1:]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(x, y) for x, y in zip(before, made.parameters(), strict=True))
