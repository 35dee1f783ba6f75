"""What the Triton backend refuses, with which words, and what it compiles to where it serves."""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memformer_kernels import availability, explain, triton_support
from memformer_kernels.calls import plan
from memformer_kernels.calls.problem import Problem, QuadraticProblem

TILE = Problem(21, 33, 4, 1, "response-only", "full", False, 20, None, "cuda")

_look = availability._look_for_triton_fault.__wrapped__


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.8.0", "3.8.1"])
def test_releases_that_have_been_checked(version: str) -> None:
    assert triton_support.release_fault(version) is None


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3.5.1", "too old: pip install 'triton>=3.6,<3.9'"),
        ("2.9", "too old"),
        ("3.9.0", "newer than what has been checked, 3.6 to 3.8"),
        ("4.0", "newer"),
        ("of another distribution", "no release"),
        ("3", "no release"),
    ],
)
def test_other_releases_are_refused_with_the_mend(version: str, words: str) -> None:
    assert words in str(triton_support.release_fault(version))


def test_the_extra_installs_what_is_served() -> None:
    from tests.pages import text_of

    assert 'triton = ["triton>=3.6,<3.9"]' in text_of("pyproject.toml")
    assert (triton_support.OLDEST, triton_support.NEWEST) == ((3, 6), (3, 8))


def test_the_page_has_the_table() -> None:
    from tests.pages import rows, text_of

    table = rows(text_of("docs/triton.md").split("\n## ")[0])
    served = {cells[0]: (name, cells[1]) for name, cells in table.items() if cells[2].startswith("served")}
    assert served == {f"{number}.x": (made.name, made.products) for number, made in triton_support.GENERATIONS.items()}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process whose torch has CUDA and a GPU, without the CUDA library, that interprets nothing."""
    monkeypatch.setattr(availability, "INTERPRETS", False)
    monkeypatch.setattr(availability, "_faults", {"torch": None, "cpu": None, "cuda": "not built"})
    monkeypatch.setattr(availability, "_triton_version", lambda: "3.7.1")
    monkeypatch.setattr(availability, "_look_for_triton_fault", _look)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    return monkeypatch


def _gpus(machine: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    machine.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)])
def test_gpus_that_are_served(machine: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    _gpus(machine, capability)
    assert plan.plan_network(TILE, "auto", "auto").backend == "triton"
    assert plan.plan_network(TILE, "triton", "auto").backend == "triton"


@pytest.mark.parametrize("capability", [(7, 5), (11, 0), (13, 0)])
def test_gpus_that_nobody_has_checked_are_refused(machine: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    _gpus(machine, (9, 0), capability)
    other = TILE._replace(number=1)
    words = rf"GPU 1 is a GPU of compute capability {capability[0]}\.{capability[1]}, and the Triton kernels have been"
    plans = [
        lambda backend: plan.plan_network(other, backend, "auto"),
        lambda backend: plan.plan_layer(other, 0, backend),
        lambda backend: plan.plan_quadratics(QuadraticProblem(33, "cuda", 1), backend),
        lambda backend: plan.plan_attention(64, 64, "cuda", backend, 1),
        lambda backend: plan.plan_update(torch.float32, "cuda", backend, 1),
    ]
    for made in plans:
        found = made("auto")
        assert found.backend == "torch"
        assert "have been checked for 8.x, 9.x, 10.x, 12.x" in found.reason
        with pytest.raises(RuntimeError, match=words):
            made("triton")
    assert plan.plan_gram(21, 33, False, "cuda", 1).backend == "torch"
    assert plan.plan_gram(21, 33, False, "cuda", 0).backend == "triton"


def test_the_number_of_a_gpu_comes_from_its_tensors(machine: pytest.MonkeyPatch) -> None:
    """Of tensors that say they lie on a GPU, and hold nothing."""
    _gpus(machine, (9, 0), (7, 5))
    for number, backend in ((0, "triton"), (1, "torch")):
        device = f"cuda:{number}"
        with FakeTensorMode():
            z, gamma = torch.empty(2, 40, 33, device=device), torch.empty(1, 33, device=device)
            assert explain(z, [z], gamma).backend == explain(z).backend == backend


def test_rocm_is_refused_although_its_tensors_say_cuda(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.version, "cuda", None)
    machine.setattr(torch.version, "hip", "6.4")
    machine.setattr(torch.cuda, "get_device_capability", lambda index: pytest.fail("of no NVIDIA GPU"))
    found = plan.plan_network(TILE, "auto", "auto")
    assert found.backend == "torch"
    assert "NVIDIA GPUs alone" in found.reason
    info = availability.build_info().backends["triton"]
    assert not info.available
    assert "one for ROCm" in info.reason
    with pytest.raises(RuntimeError, match="one for ROCm"):
        plan.plan_network(TILE, "triton", "auto")


def test_build_info_says_which_release_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(availability, "_triton_version", lambda: "3.9.0")
    info = availability.build_info().backends["triton"]
    assert (info.available, info.architectures) == (False, ())
    assert "newer than what has been checked" in info.reason


def test_build_info_names_what_is_served(machine: pytest.MonkeyPatch) -> None:
    _gpus(machine, (9, 0))
    assert availability.build_info().backends["triton"].architectures == ("sm_8x", "sm_9x", "sm_10x", "sm_12x")
