"""The registry: names, reasons, selection."""

import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.measure.data import Batch, Parameters, make_batch, make_parameters
from benchmarks.measure.harness import BUDGETS, errors, reference_outcome
from benchmarks.measure.providers import AUTOMATIC, NO_FLA, NO_JAX, OURS, PROVIDERS, Outcome, Provider, select
from benchmarks.measure.workloads import BATCHES, DIRECTIONS, W_FULL, W, Workload
from memformer_kernels import build_info, reference

CPU = torch.device("cpu")


def test_names_are_unique_and_ours_are_no_peers() -> None:
    names = [provider.name for provider in PROVIDERS]
    assert len(set(names)) == len(names)
    assert {p.name for p in PROVIDERS if not p.peer} == {n for n in names if n.startswith("memformer_kernels")}


OTHERS = (
    replace(W, name="cgd", rule="cgd", granularity="scalar"),
    replace(W, name="linear", rule="linear", structure="block"),
    replace(W_FULL, name="recursive", rule="recursive", heads=2),
    replace(W, name="shared", rule="lfom_shared", structure="dense", direction=DIRECTIONS[2]),
    replace(W, name="gated", rule="gated_heads", heads=2, d=3, n=9),
    replace(W, name="half", rule="lfom_residual", dtype="bfloat16"),
    replace(W, name="tokens", direction=DIRECTIONS[2]),
    replace(W_FULL, name="tokens, full", direction=DIRECTIONS[2]),
    replace(W, name="forward", direction="forward", dtype="float64"),
    replace(W, name="forward, block", direction="forward", structure="block"),
)


@pytest.mark.parametrize("workload", [W, W_FULL, *OTHERS], ids=lambda w: w.name)
@pytest.mark.parametrize("provider", [p for p in PROVIDERS if "compiled" not in p.name], ids=lambda p: p.name)
def test_a_provider_is_right_or_says_why_not(provider: Provider, workload: Workload) -> None:
    workload = workload.with_batch(300)
    support = provider.supports(workload, CPU)
    if not support:
        missing = {info.reason for info in build_info().backends.values() if not info.available} | {NO_JAX, NO_FLA}
        words = ("gamma", "runs on cuda", "response-only LFOM", "a solver has no parameters")
        assert any(word in support.reason for word in words) or support.reason in missing
        return
    parameters, batch = make_parameters(workload, 0, CPU), make_batch(workload, 1, CPU)
    outcome = provider.outcome(provider.build(workload, parameters)(batch))
    reference = reference_outcome(workload, batch, parameters)
    if provider.solution is not None:
        reference = Outcome(provider.solution(workload, batch.z), {})
    loss_error, gradient_error = errors(outcome, reference)
    loss_budget, gradient_budget = BUDGETS[workload.parameter_dtype]
    assert loss_error <= loss_budget
    assert gradient_error <= gradient_budget


@pytest.mark.parametrize("workload", [W, W_FULL, *OTHERS], ids=lambda w: w.name)
def test_the_reference_is_the_packages_definition(workload: Workload) -> None:
    workload = replace(workload.with_batch(20), dtype="float64", direction="forward")
    parameters, batch = make_parameters(workload, 0, CPU), make_batch(workload, 1, CPU)
    expected = reference.predict(batch.z, *_defined(parameters), context=workload.n)[-1]
    found = reference_outcome(workload, batch, parameters).loss
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def _defined(parameters: Parameters) -> tuple[Tensor | None, ...]:
    return parameters.q, parameters.p, parameters.gamma, parameters.beta, parameters.gate


def test_solvers_answer_the_tasks() -> None:
    workload = replace(W, direction="forward", layers=W.d, dtype="float64", batch=50)
    z, target = make_batch(workload, 1, CPU)
    for provider in select(["CG", "least squares"]):
        found = provider.build(workload, make_parameters(workload, 0, CPU))(Batch(z, target)).loss
        assert (found - target).norm() <= 1e-6 * target.norm()  # noiseless: d steps of CG and least squares are exact
        assert not provider.supports(W, CPU)


def test_every_peer_in_pytorch_supports_some_workload() -> None:
    for provider in PROVIDERS:
        if provider.peer and not any(word in provider.name for word in ("JAX", "flash")):
            assert any(provider.supports(workload, CPU) for workload in (W, W_FULL, *OTHERS)), provider.name


def test_ours_run_where_they_are_built() -> None:
    backends = ("torch", "cpu", "triton", "cuda")
    assert [provider.name for provider in OURS] == [f"memformer_kernels ({backend})" for backend in backends]
    for provider, backend in zip(OURS[:2], backends, strict=False):
        info = build_info().backends[backend]
        support = provider.supports(W, CPU)
        assert support.ok == info.available
        assert support.ok or support.reason == info.reason
    assert not OURS[1].supports(W, torch.device("cuda"))
    assert not any(provider.supports(W, CPU) for provider in OURS[2:])
    assert AUTOMATIC.supports(W, CPU)
    assert not AUTOMATIC.peer


def test_without_jax_its_peers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for provider in select(["JAX"]):
        assert provider.supports(W, CPU) == (False, "jax is not installed")


def test_flash_linear_attention_makes_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the package's signature, in plain PyTorch: sizes and layout are those its documentation gives."""
    (provider,) = select(["flash-linear-attention"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert provider.supports(W, torch.device("cuda")) == (False, NO_FLA)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert provider.supports(W, torch.device("cuda"))
    assert not provider.supports(W_FULL, torch.device("cuda"))
    assert not provider.supports(W, CPU)

    def chunk_linear_attn(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        assert q.shape == (300, 20, 1, 16)
        assert options == {"scale": 1.0, "output_final_state": True, "normalize": False}
        return q, torch.einsum("bthk,bthv->bhkv", k, v)

    module = types.ModuleType("fla.ops.linear_attn")
    vars(module)["chunk_linear_attn"] = chunk_linear_attn
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.linear_attn", module)
    workload = W.with_batch(300)
    parameters, batch = make_parameters(workload, 0, CPU), make_batch(workload, 1, CPU)
    outcome = provider.outcome(provider.build(workload, parameters)(batch))
    loss_error, gradient_error = errors(outcome, reference_outcome(workload, batch, parameters))
    assert loss_error <= BUDGETS[torch.float32][0]
    assert gradient_error <= BUDGETS[torch.float32][1]


def test_jax_serves_each_workload_once_where_it_has_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the module that imports JAX: a JAX without CUDA, then one with it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    module = types.ModuleType("benchmarks.peers.jax_formulations")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(peers, "jax_formulations", module, raising=False)
    forms, cuda = select(["JAX"]), torch.device("cuda")
    vars(module)["missing"] = lambda platform: "" if platform == "cpu" else f"jax 1.2 has no {platform} device: none"
    for workload in (W, W_FULL):
        assert sum(bool(provider.supports(workload, CPU)) for provider in forms) == 1
    assert forms[0].supports(W, cuda) == (False, "jax 1.2 has no cuda device: none")
    vars(module)["missing"] = lambda platform: ""
    for workload in (W, W_FULL):
        assert sum(bool(provider.supports(workload, cuda)) for provider in forms) == 1


def test_a_jax_that_does_not_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delattr(peers, "jax_formulations", raising=False)
    monkeypatch.setitem(sys.modules, "benchmarks.peers.jax_formulations", None)
    support = select(["JAX"])[0].supports(W, CPU)
    assert not support
    assert "cannot be imported" in support.reason


def test_n_by_n_stops_beyond_a_hundred_thousand_tasks() -> None:
    for provider in select(["published"]):
        found = [provider.supports(W.with_batch(batch), CPU) for batch in BATCHES]
        assert [support.ok for support in found] == [True, True, False]
        assert "GB of n-by-n intermediates" in found[-1].reason


def test_selection_by_words_keeps_the_order() -> None:
    assert select([]) == PROVIDERS
    assert [p.name for p in select(["Gram, eager", "memformer"])] == [
        "Gram, eager",
        "batch-last Gram, eager",
        "memformer_kernels (torch)",
        "memformer_kernels (cpu)",
        "memformer_kernels (triton)",
        "memformer_kernels (cuda)",
    ]
    with pytest.raises(ValueError, match=r"'numpy' matches no name.*re-associated, eager"):
        select(["numpy"])
