"""The published code's own numbers: outputs, loss and every gradient, on every path and in every reference form."""

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_loss
from memformer_kernels.testing import FLOAT64_ERROR, Implementation, in_form, public, relative_error, twin_violations
from tests.memformer_kernels import golden
from tests.memformer_kernels.paths import PATHS, Path

ON_PATHS = [(name, path) for name in golden.NAMES for path in PATHS if path.serves(golden.load(name).own_case())]
IN_FORMS = [
    (name, form)
    for name in golden.NAMES
    for form in ("literal", "reassociated", "gram")
    if form != "gram" or not golden.load(name).own_case().token_axis
]

RESPONSE_ONLY = ("cgd_scalar", "lfom_hadamard_sum")


def _assert_equals(made: Tensor, exact: Tensor) -> None:
    assert made.shape == exact.shape
    assert relative_error(made.detach(), exact) <= FLOAT64_ERROR


def _assert_reproduces(implementation: Implementation, file: golden.Golden) -> None:
    case = file.own_case()
    tokens, predictions = implementation(case)
    assert case.target is not None
    loss = (predictions[-1] - case.target).square().mean()
    grads = torch.autograd.grad(loss, list(file.leaves.values()))
    _assert_equals(tokens, file.tokens)
    _assert_equals(loss, file.loss)
    for name, grad in zip(file.leaves, grads, strict=True):
        _assert_equals(grad, file.grads[name])


def test_every_file_is_there_and_has_gradients() -> None:
    assert sorted(path.stem for path in golden.FOLDER.glob("*.npz")) == sorted(golden.NAMES)
    for name in golden.NAMES:
        assert golden.load(name).grads.keys() == golden.load(name).leaves.keys()
        assert all(grad.norm() > 0 for grad in golden.load(name).grads.values())


@pytest.mark.parametrize(("name", "path"), ON_PATHS, ids=str)
def test_path_in_float64(name: str, path: Path) -> None:
    _assert_reproduces(public(*path), golden.load(name))


@pytest.mark.parametrize(("name", "form"), IN_FORMS)
def test_reference_form_in_float64(name: str, form: str) -> None:
    _assert_reproduces(in_form(form), golden.load(name))


@pytest.mark.parametrize(("name", "path"), ON_PATHS, ids=str)
def test_loss_function(name: str, path: Path) -> None:
    file = golden.load(name)
    case = file.own_case()
    assert case.target is not None
    loss = memformer_loss(case.z, case.target, case.q, *case.parameters, **path.options)
    _assert_equals(loss, file.loss)
    for key, grad in zip(file.leaves, torch.autograd.grad(loss, list(file.leaves.values())), strict=True):
        _assert_equals(grad, file.grads[key])


@pytest.mark.parametrize(("name", "path"), [x for x in ON_PATHS if x[0] in RESPONSE_ONLY], ids=str)
def test_response_only_files_without_p(name: str, path: Path) -> None:
    """The files with Bm = 0 say the same through p = None, whose code is another."""
    file = golden.load(name)
    assert not file.leaves["p"].any()
    case = file.own_case()
    assert case.target is not None
    loss = memformer_loss(case.z, case.target, case.q, None, case.gamma, case.beta, **path.options)
    _assert_equals(loss, file.loss)
    kept = {key: leaf for key, leaf in file.leaves.items() if key != "p"}
    for key, grad in zip(kept, torch.autograd.grad(loss, list(kept.values())), strict=True):
        _assert_equals(grad, file.grads[key])


@pytest.mark.parametrize(("name", "path"), ON_PATHS, ids=str)
def test_path_in_float32_is_within_the_twin_budget(name: str, path: Path) -> None:
    assert twin_violations(public(*path), golden.load(name).own_case()) == {}
