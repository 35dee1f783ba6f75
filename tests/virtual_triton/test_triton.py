"""The Triton backend's kernels as PTX for an A100 and an H200, run by a virtual GPU with all its checks."""

import inspect
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, memformer_loss, memformer_predict, memformer_stack, register_update, warmup
from memformer_kernels.backends.triton import launch, rules
from memformer_kernels.calls.plan import fuses
from memformer_kernels.testing import (
    GRADIENT_FACTOR,
    Case,
    float64_violations,
    in_form,
    public,
    relative_error,
    results,
    twin_errors,
    twin_violations,
)
from tests.memformer_kernels.cases import RULES, leaves, make_case, normal, seeded
from tests.virtual_triton.gpus import ARCHITECTURES, clean_gpu, kernel_names
from tests.virtual_triton.operations import OPERATIONS, with_gradients
from virtual_gpu import Device
from virtual_gpu.triton import driver_of

pytestmark = [pytest.mark.compiled, pytest.mark.timeout(1200)]

slow = pytest.mark.slow

ORDERS = 8
"""Of the tasks, in the twin's budget: a virtual GPU runs a few, whose gradients are sums of a few numbers."""


class Network(NamedTuple):
    """A network by what decides which kernels run it, and how they are compiled."""

    algorithm: str
    structure: str
    width: int
    tokens: int

    def case(self, tasks: int, rule: str = "lfom", granularity: str = "feature", heads: int = 1) -> Case:
        case = make_case(
            rule=rule,
            granularity=granularity,
            structure=self.structure,
            width=self.width,
            tokens=self.tokens,
            layers=3,
            heads=heads,
            tasks=tasks,
        )
        return Case(**{**vars(case), "target": normal(seeded(1), tasks, 1)})


WIDTHS = (2, 3, 4, 6, 12, 16, 24, 33, 40, 100)
TOKENS = (8, 13, 20, 40, 100, 140, 300)


def _configuration(network: Network, architecture: int) -> object | None:
    """What the network's kernels are compiled for; None for what other kernels serve."""
    width, tokens = network.width, network.tokens
    if network.structure == "response-only" and network.algorithm == "gram":
        # Rows of tokens are read by kernels that these networks launch for many tokens and few tasks alone.
        apart = rules.gram_apart(width)
        gram = rules.feature_gram_config(width, torch.float32, architecture) if apart else None
        vectors = rules.vectors_config(width - apart, tokens, torch.float32, architecture, gradients=False)
        return vectors._replace(rows=0), gram
    if not fuses(width, tokens, network.algorithm, response_only=False):
        return None
    if network.structure == "response-only":
        columns = rules.columns_config(width, tokens)
        return columns, rules.keeps_features(tokens, columns.rows, architecture), rules.line(tokens)
    rows = width if network.algorithm == "gram" else tokens
    return rules.config(width, rows, torch.float32, architecture, matrices=True)


def _chosen(architecture: int, widths: Sequence[int], tokens: Sequence[int]) -> dict[object, Network]:
    """The smallest network of every configuration."""
    found: dict[object, Network] = {}
    for algorithm, structure in (
        ("gram", "response-only"),
        ("token", "response-only"),
        ("gram", "block"),
        ("token", "dense"),
    ):
        for width, count in itertools.product(widths, tokens):
            network = Network(algorithm, structure, width, count)
            configuration = _configuration(network, architecture)
            if configuration is not None:
                found.setdefault((algorithm, structure, configuration), network)
    return found


QUICK_CONFIGURATIONS = {
    (Network("gram", "response-only", 6, 8), 90),
    (Network("gram", "response-only", 16, 8), 80),
    (Network("token", "response-only", 6, 20), 90),
    (Network("gram", "block", 6, 8), 80),
}
MIXED = [
    *sorted(QUICK_CONFIGURATIONS),
    *itertools.product(
        (
            Network("token", "response-only", 6, 100),
            Network("token", "block", 6, 20),
            Network("token", "dense", 24, 20),
            Network("gram", "response-only", 40, 40),
            Network("gram", "block", 40, 20),
        ),
        ARCHITECTURES,
    ),
]


def _parameters(cases: Iterable[tuple[Network, int]]) -> list[object]:
    return [
        pytest.param(
            network,
            architecture,
            id=f"{'-'.join(map(str, network))}-sm_{architecture}",
            marks=[] if (network, architecture) in QUICK_CONFIGURATIONS else slow,
        )
        for network, architecture in cases
    ]


def _networks() -> list[object]:
    return _parameters(
        (network, architecture)
        for architecture in ARCHITECTURES
        for network in _chosen(architecture, WIDTHS, TOKENS).values()
    )


def _loss(case: Case, algorithm: str) -> dict[str, Tensor]:
    """The fused loss in float32, and its gradients."""
    single = case.to(torch.float32)
    assert single.target is not None
    options: dict[str, Any] = {"context": single.context, "backend": "triton", "algorithm": algorithm}
    loss = memformer_loss(single.z, single.target, single.q, *single.parameters, **options)
    parameters = leaves(single)
    grads = torch.autograd.grad(loss, list(parameters.values()))
    return {"loss": loss.detach(), **dict(zip(parameters, grads, strict=True))}


def _loss_violations(case: Case, made: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """What of the loss and its gradients errs by more than three times its twin: name -> (error, budget)."""
    exact = results(in_form("literal"), case.to(torch.float64))
    twin = twin_errors(case, exact, ORDERS)
    assert case.target is not None
    found = (exact["predictions"][-1] - case.target.double()).square().mean()
    exact = {"loss": found, **{name.removeprefix("grad_"): value for name, value in exact.items()}}
    errors = {"loss": twin["predictions"], **{name.removeprefix("grad_"): error for name, error in twin.items()}}
    violations = {}
    for name, value in made.items():
        budget = GRADIENT_FACTOR * max(errors[name], torch.finfo(torch.float32).eps)
        error = relative_error(value, exact[name])
        if not error <= budget:
            violations[name] = (error, budget)
    return violations


@pytest.mark.parametrize(("network", "architecture"), _parameters(MIXED))
def test_losses_are_right_and_have_the_same_bits_in_any_order_of_warps(network: Network, architecture: int) -> None:
    """More tasks than a program takes, and no whole number of them."""
    case = network.case(tasks=70 if network.width < rules.DOT_MINIMUM else 5)
    made = []
    for order in range(4):
        with clean_gpu(architecture, order):
            made.append(_loss(case, network.algorithm))
    assert _loss_violations(case, made[0]) == {}
    for again in made[1:]:
        assert all(torch.equal(value, again[name]) for name, value in made[0].items())


@slow
@pytest.mark.parametrize(("network", "architecture"), _networks())
def test_every_configuration(network: Network, architecture: int) -> None:
    case = network.case(tasks=70 if network.width < rules.DOT_MINIMUM else 5)
    with clean_gpu(architecture):
        assert _loss_violations(case, _loss(case, network.algorithm)) == {}
        assert twin_violations(public("triton", network.algorithm), case, ORDERS) == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_size_has_a_configuration_of_its_own(architecture: int) -> None:
    tested = _chosen(architecture, WIDTHS, TOKENS).keys()
    assert _chosen(architecture, range(2, 130), (5, 8, 13, 16, 17, 32, 33, 64, 65, 128, 129, 4096)).keys() == tested


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("algorithm", ["gram", "token"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, algorithm: str, architecture: int) -> None:
    granularity = "full" if algorithm == "token" and rule != "linear" else "feature"
    for structure in ("response-only", "block"):
        # A gradient of a gate is two numbers, in which much cancels: of a few tasks it is chance.
        tasks = 70 if rule == "gated_heads" else 7
        case = Network(algorithm, structure, 5, 9).case(tasks, rule, granularity, heads=2)
        with clean_gpu(architecture):
            assert _loss_violations(case, _loss(case, algorithm)) == {}
            assert twin_violations(public("triton", algorithm), case, ORDERS) == {}


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("width", [6, 24])
@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("algorithm", ["gram", "token"])
def test_float64(algorithm: str, structure: str, width: int, architecture: int) -> None:
    case = Network(algorithm, structure, width, 20).case(5)
    with clean_gpu(architecture):
        assert float64_violations(public("triton", algorithm), case) == {}


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("structure", "width"), [("response-only", 24), ("response-only", 6), ("block", 24)])
def test_few_tasks_with_long_contexts(structure: str, width: int, architecture: int) -> None:
    """Passes over tokens are spread over programs, and their sums added."""
    case = make_case(structure=structure, width=width, tokens=600, tasks=3, layers=2, heads=1)
    with clean_gpu(architecture) as driver:
        assert twin_violations(public("triton", "gram"), case, ORDERS) == {}
        assert {"across_kernel", "rows_kernel"} <= driver.launched


QUICK_OPERATIONS = {("update by columns", 80), ("quadratics, 5 wide", 90)}


def _operations() -> list[object]:
    return [
        pytest.param(name, architecture, id=f"{name}-sm_{architecture}", marks=[] if quick else slow)
        for architecture in ARCHITECTURES
        for name in OPERATIONS
        for quick in [(name, architecture) in QUICK_OPERATIONS]
    ]


@pytest.mark.parametrize(("name", "architecture"), _operations())
def test_other_operations(name: str, architecture: int) -> None:
    exact, twin = (with_gradients(*OPERATIONS[name], dtype, "torch") for dtype in (torch.float64, torch.float32))
    made_by_order = []
    for order in range(3):
        with clean_gpu(architecture, order):
            made_by_order.append(with_gradients(*OPERATIONS[name], torch.float32, "triton"))
    ours, *others = made_by_order
    assert all(all(map(torch.equal, ours, again)) for again in others)
    for made, plain, right in zip(ours, twin, exact, strict=True):
        assert relative_error(made, right) <= GRADIENT_FACTOR * max(relative_error(plain, right), 1e-7)


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["Gram matrix, 6 wide", "Gram matrix, 70 wide", "attention, 64 wide", "update by rows"]
)
def test_half_precision(name: str, dtype: torch.dtype, architecture: int) -> None:
    plain = with_gradients(*OPERATIONS[name], dtype, "torch")
    with clean_gpu(architecture):
        ours = with_gradients(*OPERATIONS[name], dtype, "triton")
    for made, expected in zip(ours, plain, strict=True):
        assert made.dtype == expected.dtype
        assert relative_error(made, expected) < 8 * torch.finfo(dtype).eps


def test_every_kernel_is_among_them() -> None:
    """What the calls above launch, launching nothing."""
    launched: set[str] = set()

    def note(kernel: Any, _: int, arguments: dict[str, Any]) -> None:
        launched.add(f"{Path(inspect.getfile(kernel.fn)).stem}.{kernel.__name__}")

    with clean_gpu(90), launch.observed(note):
        for network, _ in MIXED:
            results(public("triton", network.algorithm), network.case(3).to(torch.float32))
        for name in OPERATIONS:
            with_gradients(*OPERATIONS[name], torch.float32, "triton")
    assert launched == kernel_names()


def test_values_that_nothing_wrote_are_followed() -> None:
    """What torch.empty returned counts as written once a kernel or torch wrote to it."""
    z, registers, gamma = torch.ones(40), [torch.ones(40)], torch.ones(1, 40)
    with clean_gpu(90) as driver:
        fresh = torch.empty(40)
        assert not driver.memory.written(register_update(z, [fresh], gamma, backend="triton"))
        made = register_update(z, [fresh.fill_(1.0)], gamma, backend="triton")
        assert driver.memory.written(made)
        assert driver.memory.written(register_update(made, registers, gamma, backend="triton"))


def test_a_length_that_nothing_wrote_is_found() -> None:
    """Poisoned by the largest integer, it would be read as it is; it decides what is loaded."""
    z, q = torch.ones(3, 9, 7), torch.zeros(1, 1, 6, 6)
    with driver_of(Device(capability=80)) as driver:
        memformer_predict(z, q, context=torch.empty(3, dtype=torch.int64).fill_(4), backend="triton")
        assert driver.device.take_reports() == []
        lengths = torch.empty(3, dtype=torch.int64)
        lengths.numpy()[:] = 4  # unseen by torch
        memformer_predict(z, q, context=lengths, backend="triton")
        assert {report.check for report in driver.device.take_reports()} == {"uninitialised"}


def test_warmup_compiles_and_runs_nothing() -> None:
    z, q = torch.ones(3, 9, 7), torch.zeros(1, 1, 6, 6)
    with clean_gpu(80) as driver:
        assert warmup(z, q, backend="triton").backend == "triton"
        assert not driver.launched


def test_auto_leaves_cpu_tensors_to_others() -> None:
    with clean_gpu(90) as driver:
        memformer_predict(torch.ones(3, 9, 7), torch.zeros(1, 1, 6, 6))
        context_gram(torch.ones(3, 9, 7))
        assert not driver.launched


def test_without_a_virtual_gpu_cpu_tensors_are_refused() -> None:
    z, q = torch.ones(3, 9, 7), torch.zeros(1, 1, 6, 6)
    with clean_gpu(90):
        memformer_stack(z, q, backend="triton")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
            memformer_stack(z, q, backend="triton")
