"""The empty operations are what they claim, and the comparison is like with like."""

import pytest
import torch

from benchmarks.measure import overhead
from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.overhead import Comparison, Cost, Overhead, measure
from benchmarks.measure.workloads import W
from benchmarks.peers import empty_ops
from benchmarks.reports.tables import overhead_table
from memformer_kernels.torch_ops import ops

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["predict", "predict_backward", "loss"])
def test_schemas_are_the_packages(name: str) -> None:
    ours = str(getattr(torch.ops.memformer_kernels, name).default._schema)
    assert str(getattr(empty_ops, name)._schema) == ours.replace("memformer_kernels::", "memformer_benchmarks::")


@pytest.mark.parametrize("name", ["predict", "loss"])
def test_results_gradients_and_saved_tensors_are_shaped_as_the_packages(name: str) -> None:
    workload = W.with_batch(1)
    (z, target), (q, gamma) = make_batch(workload, 1, CPU), make_parameters(workload, 0, CPU)
    first = (z,) if name == "predict" else (z, target)
    extra = [False] if name == "predict" else [[False, False, True, False, True, False, False, False]]
    arguments = (*first, q, None, gamma, None, None, None, W.n, "gram, response-only, full", 1, *extra, "torch")
    shapes: dict[str, list[object]] = {}
    for kind, operation in (("ours", getattr(ops, name)), ("empty", getattr(empty_ops, name))):
        saved: list[object] = []

        def note(tensor: torch.Tensor, saved: list[object] = saved) -> torch.Tensor:
            saved.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            made = operation(*arguments)
        results = [made] if name == "predict" else made
        grads = torch.autograd.grad(results[0].sum(), (q, gamma))
        shapes[kind] = [saved, [x.shape for x in results], [x.dtype for x in results], [x.shape for x in grads]]
    assert shapes["empty"] == shapes["ours"]


def test_every_way_of_calling_is_timed_with_its_parts() -> None:
    found = measure("torch", rounds=3, calls=2)
    calls = [comparison.call for comparison in found.comparisons]
    assert calls == [
        "predict",
        "loss",
        "predict, requires_grad",
        "loss, requires_grad",
        "predict + backward",
        "loss + backward",
    ]
    for comparison in found.comparisons:
        assert comparison.public.q10_us <= comparison.public.median_us <= comparison.public.q90_us
        assert comparison.empty.median_us > 0
        assert (comparison.kernel is None) == ("backward" in comparison.call)
        assert (comparison.operation is None) == ("backward" in comparison.call)


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in ("public", "empty")}
    monkeypatch.setattr(overhead, "_ways", lambda backend: {"call": contenders})
    measure("torch", rounds=2, calls=1)
    assert calls == ["public", "empty"] * 3


def test_the_ratio_and_the_parts_by_hand() -> None:
    def cost(median: float) -> Cost:
        return Cost(median, median - 1, median + 1)

    one = Comparison("predict", cost(30), cost(20), cost(25), cost(5))
    found = Overhead("cpu", 10, 10, (one,))
    assert one.ratio == 1.5
    assert found.ratios == {"predict": 1.5}
    row = [next(iter(column.cells)) for column in overhead_table(found).columns]
    assert row == ["predict", "30 (29..31)", "20", "[green]1.50[/green]", "5", "20", "5"]
