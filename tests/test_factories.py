"""New tensors and modules name their device and dtype: a program may set other defaults than ours."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import memformer_kernels.nn

ROOT = Path(__file__).parents[1]
FOLDERS = ("memformer_kernels", "python", "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
FACTORIES = re.findall(
    r"\w+",
    "arange as_tensor asarray bartlett_window blackman_window empty empty_permuted empty_strided eye full "
    "hamming_window hann_window kaiser_window linspace logspace ones rand randint randn randperm range scalar_tensor "
    "tensor tril_indices triu_indices zeros",
)
"""Functions of torch whose results are on the default device or, made of floats, of the default dtype."""


def _unnamed(source: str) -> list[int]:
    """Lines of calls that make a tensor or a module without saying where and of what."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and _makes(node.func) and not _names(node.keywords)
    ]


def _makes(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return _is_module(getattr(memformer_kernels.nn, function.id, None))
    if not isinstance(function, ast.Attribute):
        return False
    if isinstance(function.value, ast.Name) and function.value.id == "torch" and function.attr in FACTORIES:
        return True
    owner = ast.unparse(function.value)
    if owner in ("nn", "torch.nn"):
        return _is_module(getattr(torch.nn, function.attr, getattr(memformer_kernels.nn, function.attr, None)))
    return owner.endswith(".nn") and _is_module(getattr(memformer_kernels.nn, function.attr, None))


def _is_module(made: object) -> bool:
    if not inspect.isclass(made) or not issubclass(made, torch.nn.Module):
        return False
    return issubclass(made, torch.nn.RNNBase) or "device" in inspect.signature(made).parameters


def _names(keywords: list[ast.keyword]) -> bool:
    named = {keyword.arg for keyword in keywords}
    return None in named or named >= {"device", "dtype"}


def _calls() -> Iterator[tuple[Path, int]]:
    for path in FILES:
        for line in _unnamed(path.read_text(encoding="utf-8")):
            yield path, line


def test_every_factory_call_names_device_and_dtype() -> None:
    assert len(FILES) > 150
    assert [f"{path.relative_to(ROOT)}:{line}" for path, line in _calls()] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.zeros(3)", 1),
        ("torch.zeros(3, dtype=torch.float32)", 1),
        ("torch.tensor(1.0, device=z.device)", 1),
        ("torch.full((2,), 1.0, device=z.device, dtype=z.dtype)", 0),
        ("torch.eye(3, **factory)", 0),
        ("nn.Linear(3, 4)", 1),
        ("torch.nn.Linear(3, 4, device=device)", 1),
        ("nn.Linear(3, 4, device=device, dtype=dtype)", 0),
        ("nn.LSTM(3, 4)", 1),
        ("nn.ReLU()", 0),
        ("Memformer(3, 2)", 1),
        ("memformer_kernels.nn.Memformer(3, 2, device=device, dtype=dtype)", 0),
        ("z.new_zeros(3); torch.zeros_like(z); torch.cat([z, z])", 0),
    ],
)
def test_the_rule(source: str, count: int) -> None:
    assert len(_unnamed(source)) == count
