"""`help` of a public name stands alone: arguments or attributes, what comes back, errors, examples that run."""

import dataclasses
import doctest
import inspect
import re
from typing import Any

import pytest
import torch

import memformer_kernels
from memformer_kernels import functional, nn

PUBLIC: dict[str, Any] = {name: getattr(memformer_kernels, name) for name in memformer_kernels.__all__}
MODULES = {name: getattr(nn, name) for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
CALLED: dict[str, Any] = {
    name: value
    for name, value in (PUBLIC | MODULES).items()
    if inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, torch.nn.Module))
}
KEPT = {
    name: value
    for name, value in PUBLIC.items()
    if dataclasses.is_dataclass(value) and inspect.signature(value).parameters
}
OPERATIONS = [name for name, value in CALLED.items() if value.__module__ == functional.__name__]
SECTIONS = r"^(Attributes|Args|Returns|Raises|Cost|Example):"


def _sections(value: Any) -> dict[str, str]:
    _, *parts = re.split(SECTIONS, inspect.getdoc(value) or "", flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _described(section: str) -> list[str]:
    """The names that a section has lines for; a line may stand for several."""
    lines = re.findall(r"^    (\w+(?:, \w+)*): \S", section, flags=re.MULTILINE)
    return [name for line in lines for name in line.split(", ")]


def test_all_kinds_are_there() -> None:
    assert len(OPERATIONS) == 12
    assert {"train_steps", "explain", "Memformer", "RegisterMemory"} < CALLED.keys()
    assert {"TrainState", "Adam", "FixedTasks"} < KEPT.keys()


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_has_a_line(name: str) -> None:
    found = _sections(CALLED[name])
    parameters = list(inspect.signature(CALLED[name]).parameters)
    if parameters:
        assert _described(found["Args"]) == parameters
        assert "Raises" in found
    assert inspect.isclass(CALLED[name]) or "Returns" in found


@pytest.mark.parametrize("name", KEPT)
def test_every_attribute_has_a_line(name: str) -> None:
    value = KEPT[name]
    text = "\n".join(_sections(kind).get("Attributes", "") for kind in value.__mro__ if kind is not object)
    assert set(inspect.signature(value).parameters) <= set(_described(text))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_says_what_it_costs_and_shows_a_call(name: str) -> None:
    assert list(_sections(CALLED[name])) == ["Args", "Returns", "Raises", "Cost", "Example"]


@pytest.mark.parametrize("name", CALLED)
def test_examples_run(name: str) -> None:
    names = {**PUBLIC, **MODULES, "torch": torch}
    examples = doctest.DocTestFinder(recurse=False).find(CALLED[name], name, globs=names)
    for example in examples:
        assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
