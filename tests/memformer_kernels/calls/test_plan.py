"""The rules for tensors on GPUs, from descriptions of problems: no GPU is asked."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memformer_kernels import Adam, GaussianStatistics, TrainState, availability, explain, explain_training, library
from memformer_kernels.calls import plan
from memformer_kernels.calls.problem import Problem, QuadraticProblem
from memformer_kernels.nn import Memformer
from native_build import cuda

W = Problem(21, 6, 4, 1, "response-only", "full", False, 20, None, "cuda")

_look = availability._look_for_cuda_fault.__wrapped__


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with a GPU, the CUDA library and Triton."""
    monkeypatch.setattr(availability, "_faults", dict.fromkeys(("torch", "cpu", "cuda", "triton")))
    monkeypatch.setattr(availability, "INTERPRETS", False)
    monkeypatch.setattr(availability, "cuda_fault", lambda index: None)
    monkeypatch.setattr(availability, "triton_fault", lambda index: None)


@pytest.mark.usefixtures("built")
def test_tiny_problems_on_a_gpu_take_the_cuda_library() -> None:
    assert plan.plan_network(W, "auto", "auto")[:3] == ("cuda", "gram", "tiny Gram")
    assert plan.plan_network(W._replace(token_axis=True), "auto", "auto")[:3] == ("cuda", "token", "tiny token")
    assert plan.plan_layer(W, 32, "auto").backend == "cuda"
    assert plan.plan_gram(21, 6, False, "cuda").backend == "cuda"
    assert plan.plan_quadratics(QuadraticProblem(16, "cuda"), "auto").backend == "cuda"


@pytest.mark.usefixtures("built")
def test_the_rest_takes_triton_and_what_does_not_fit_a_program_torch() -> None:
    wide = W._replace(width=18)
    assert plan.plan_network(wide, "auto", "auto")[:3] == ("triton", "gram", "tile")
    assert "one fused Triton kernel runs all layers of a task" in plan.plan_network(wide, "auto", "auto").reason
    assert plan.plan_network(wide._replace(width=130, tokens=200), "auto", "auto")[:3] == ("torch", "gram", "large")
    assert plan.plan_layer(W._replace(tokens=200), 0, "auto").backend == "triton"
    assert plan.plan_layer(W, 33, "auto")[:3] == ("triton", "token", "tile")
    assert plan.plan_layer(W._replace(device="cpu"), 33, "auto")[:3] == ("cpu", "token", "tiny token")
    assert plan.plan_quadratics(QuadraticProblem(17, "cuda"), "auto").backend == "triton"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("structure", ["response-only", "block", "dense"])
def test_no_thread_of_a_gpu_sums_a_long_context_alone(structure: str) -> None:
    """However few tasks there are: the rule looks at the length alone. A Gram matrix's own kernel splits it."""
    long = W._replace(structure=structure, tokens=1_000_000, context=999_999)
    found = plan.plan_network(long, "auto", "auto")
    assert found[:3] == ("triton", "gram", "tile")
    assert "more than 1024 tokens are spread" in found.reason
    assert plan.plan_network(long._replace(tokens=1025), "auto", "auto").backend == "triton"
    assert plan.plan_network(long._replace(tokens=1024), "auto", "auto").backend == "cuda"
    assert plan.plan_network(long, "cuda", "auto").backend == "torch"
    assert plan.plan_network(long._replace(device="cpu"), "auto", "auto")[:3] == ("cpu", "gram", "tiny Gram")


@pytest.mark.usefixtures("built")
def test_explain_says_so() -> None:
    """Of tensors that say they lie on a GPU, and hold nothing."""
    with FakeTensorMode():
        z, q = torch.empty(2, 40, 33, device="cuda"), torch.empty(4, 1, 32, 32, device="cuda")
        found = explain(z, q)
    assert (found.backend, found.regime) == ("triton", "tile")
    assert "one fused Triton kernel runs all layers of a task" in found.reason


@pytest.mark.usefixtures("built")
def test_a_request_for_cuda_hands_what_is_not_tiny_to_torch() -> None:
    assert plan.plan_network(W, "cuda", "auto").backend == "cuda"
    found = plan.plan_network(W._replace(width=18), "cuda", "auto")
    assert found.backend == "torch"
    assert "not tiny" in found.reason


@pytest.mark.usefixtures("built")
def test_without_a_library_that_serves_the_gpu_triton_takes_tiny_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "cuda_fault", lambda index: "the driver is too old")
    assert plan.plan_network(W, "auto", "auto").backend == "triton"
    with pytest.raises(RuntimeError, match="'cuda' is not available: the driver is too old"):
        plan.plan_network(W, "cuda", "auto")
    monkeypatch.setitem(availability._faults, "cuda", "not today")
    monkeypatch.setattr(availability, "cuda_fault", lambda index: pytest.fail("no library, no question"))
    assert plan.plan_network(W, "auto", "auto").backend == "triton"


@pytest.mark.tensors_stay
@pytest.mark.usefixtures("built")
def test_cuda_refuses_tensors_on_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="backend='cuda' serves tensors on CUDA GPUs, got tensors on cpu"):
        plan.plan_network(W._replace(device="cpu"), "cuda", "auto")
    assert plan.plan_network(W._replace(device="cpu"), "auto", "auto").backend == "cpu"


@pytest.mark.parametrize(
    ("capability", "served"),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), True),
        ((10, 3), True),
        ((12, 1), True),
    ],
)
def test_which_gpus_the_default_build_serves(capability: tuple[int, int], served: bool) -> None:
    assert availability.serves(("sm_80", "sm_90", "sm_100", "compute_100"), *capability) == served


def test_code_for_one_version_alone_serves_no_other() -> None:
    assert availability.serves(("sm_90a",), 9, 0)
    assert not availability.serves(("sm_90a",), 9, 1)
    assert not availability.serves(("compute_90a",), 10, 0)
    assert not availability.serves(("sm_86",), 8, 0)
    assert not availability.serves(("sm_80",), 9, 0)
    assert not availability.serves((), 9, 0)


def _machine(monkeypatch: pytest.MonkeyPatch, driver: int, *capabilities: tuple[int, int]) -> None:
    """A process with a driver, 0 for none, and GPUs of these capabilities, and a library for 8.0 and 9.0."""
    status = library.Status(Path("memformer_cuda.so"), ("sm_80", "sm_90"), "built by nvcc 13.0", 13000)
    monkeypatch.setattr(library, "status", lambda name: status)
    monkeypatch.setattr(library, "fault", lambda name: None)
    monkeypatch.setattr(availability, "_faults", {"torch": None})
    monkeypatch.setattr(availability, "_driver_version", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(availability, "_look_for_cuda_fault", _look)


def _fault(monkeypatch: pytest.MonkeyPatch, driver: int, capability: tuple[int, int]) -> str | None:
    _machine(monkeypatch, driver, capability)
    return availability.cuda_fault()


def test_faults_name_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fault(monkeypatch, 13020, (9, 0)) is None
    old = _fault(monkeypatch, 12080, (9, 0))
    assert old is not None
    assert "CUDA 13" in old
    assert "12.8" in old
    assert "update the driver" in old
    strange = _fault(monkeypatch, 13000, (12, 0))
    assert strange is not None
    assert "TORCH_CUDA_ARCH_LIST=12.0" in strange


def test_no_gpu_is_advised_an_architecture_that_the_build_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert availability.OLDEST_GENERATION == cuda.OLDEST_GENERATION
    for capability in ((7, 0), (7, 5), (8, 6), (10, 3), (12, 0)):
        monkeypatch.undo()
        advised = re.search(r"TORCH_CUDA_ARCH_LIST=(\S+)", str(_fault(monkeypatch, 13000, capability)))
        if capability < (8, 0):
            assert advised is None
        else:
            assert advised is None or cuda.architectures(advised[1], set())
    assert "from compute capability 8.0 on, GPU 0 is of 7.5" in str(_fault(monkeypatch, 13000, (7, 5)))


def test_an_old_gpu_beside_a_new_one_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, 13000, (9, 0), (7, 5))
    monkeypatch.setitem(availability._faults, "cuda", None)
    assert availability.cuda_fault(0) is None
    assert availability.cuda_fault(1) is not None
    assert plan.plan_network(W, "cuda", "auto").backend == plan.plan_gram(21, 6, False, "cuda", 0).backend == "cuda"
    assert plan.plan_network(W._replace(number=1), "auto", "auto").backend != "cuda"
    assert plan.plan_gram(21, 6, False, "cuda", 1).backend != "cuda"
    assert plan.plan_quadratics(QuadraticProblem(16, "cuda", 1), "auto").backend != "cuda"
    with pytest.raises(RuntimeError, match=r"GPU 1 is of 7\.5"):
        plan.plan_layer(W._replace(number=1), 0, "cuda")


def test_the_number_of_a_gpu_comes_from_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors that say they lie on a GPU, and hold nothing."""
    _machine(monkeypatch, 13000, (9, 0), (7, 5))
    monkeypatch.setitem(availability._faults, "cuda", None)
    for number, served in ((0, True), (1, False)):
        device = f"cuda:{number}"
        with FakeTensorMode():
            z, q = torch.empty(2, 40, 6, device=device), torch.empty(4, 1, 5, 5, device=device)
            h, b, a, one = (torch.empty(shape, device=device) for shape in ((2, 5, 5), (2, 5), (3, 5, 5), (1, 5, 5)))
            chosen = [explain(z, q), explain(z, one, registers=[]), explain(h, b, a), explain(z)]
        assert [found.backend == "cuda" for found in chosen] == [served] * 4


@pytest.mark.parametrize(
    ("driver", "capabilities", "reason"),
    [(0, (), "no NVIDIA driver"), (12080, ((9, 0),), "update the driver"), (13000, (), "no NVIDIA GPU")],
    ids=["no driver", "an old driver", "no GPU"],
)
def test_what_no_gpu_can_run_is_not_said_to_be_available(
    monkeypatch: pytest.MonkeyPatch, driver: int, capabilities: tuple[tuple[int, int], ...], reason: str
) -> None:
    _machine(monkeypatch, driver, *capabilities)
    info = availability.build_info().backends["cuda"]
    assert not info.available
    assert info.architectures == ()
    assert reason in info.reason
    _machine(monkeypatch, 13000, (9, 0))
    assert availability.build_info().backends["cuda"].available


def test_without_a_driver_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert availability._driver_version() == 0


def test_a_compiler_takes_the_answer_as_a_constant() -> None:
    compiled = torch.compile(
        lambda x: x + (1 if availability.cuda_fault() is None else 2), fullgraph=True, backend="eager"
    )
    assert compiled(torch.zeros(())) == (1 if availability.cuda_fault() is None else 2)


def test_what_a_fallback_loses_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on import, and not where plain PyTorch was asked for."""
    monkeypatch.setitem(availability._faults, "cpu", "not today")
    monkeypatch.setattr(availability, "_told", set())
    on_cpu, adam = W._replace(device="cpu"), Adam(0.1)
    state, tasks = TrainState.of([Memformer(2, 1)]), GaussianStatistics(2, 4, 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        plan.plan_network(on_cpu, "torch", "auto")
        explain_training(state, tasks, optimizer=adam, backend="torch")
        assert told == []
        assert plan.plan_network(on_cpu, "auto", "auto").backend == "torch"
        assert plan.plan_update(torch.float32, "cpu", "auto").backend == "torch"
        assert explain_training(state, tasks, optimizer=adam).backend == "torch"
    (warning,) = told
    assert warning.category is RuntimeWarning
    assert "backend 'cpu' is not available" in str(warning.message)
    assert "plain PyTorch, slower: not today." in str(warning.message)
    availability._told.clear()
    with pytest.warns(RuntimeWarning, match="not today"):
        explain_training(state, tasks, optimizer=adam)
