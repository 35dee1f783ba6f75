"""A plugin of the runs that a sanitizer watches: of the whole suite it keeps what runs our native code.

A new test file is in by itself. What is named here stays out, each with its reason.
"""

from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/memformer_kernels", "tests/native")

_BUILDS = "looks at what a build leaves, or builds a library of its own"
_REPEATS = "makes small calls that other files make too, thousands of times each"
_ITSELF = "is what starts the runs"
APART = {
    "tests/memformer_kernels/backends/triton": "Triton's kernels",
    "tests/memformer_kernels/test_gradcheck.py": _REPEATS,
    "tests/memformer_kernels/test_package.py": _BUILDS,
    "tests/memformer_kernels/torch_ops/test_transform_matrix.py": _REPEATS,
    "tests/native/test_build.py": _BUILDS,
    "tests/native/test_cuda_build.py": _BUILDS,
    "tests/native/test_cuda_code.py": _BUILDS,
    "tests/native/test_cuda_library.py": _BUILDS,
    "tests/native/test_device_code.py": _BUILDS,
    "tests/native/test_elsewhere.py": _BUILDS,
    "tests/native/test_objects.py": _BUILDS,
    "tests/native/test_other_machines.py": _BUILDS,
    "tests/native/test_sanitizers.py": _ITSELF,
    "tests/native/test_threads.py": _BUILDS,
}
"""Files and folders of `FOLDERS` that are not run."""

TESTS_APART = {
    "test_memory_that_a_thread_cannot_get_is_a_memory_error": "a sanitizer ends a process that gets no memory",
}
"""Tests that are not run, by name."""


def parts(count: int) -> dict[str, list[str]]:
    """Every test file that is run, in so many parts of like numbers of files, each named by its first and last file."""
    found = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("test_*.py"))
    names = [path.relative_to(ROOT).as_posix() for path in found]
    kept = [name for name in names if not any(name == place or name.startswith(f"{place}/") for place in APART)]
    bounds = [len(kept) * part // count for part in range(count + 1)]
    chosen = [kept[first:end] for first, end in pairwise(bounds)]
    return {f"{Path(part[0]).stem}-{Path(part[-1]).stem}": part for part in chosen}


_OTHERS = ("torch", "triton", "cuda")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--choose-threads", action="store_true", help="only tests that choose a number of threads")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if not _is_another_backend_s(item) and item.name not in TESTS_APART]
    if config.getoption("--choose-threads"):
        kept = [item for item in kept if _chooses_threads(item)]
    held = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in held])
    items[:] = kept


def _is_another_backend_s(item: pytest.Item) -> bool:
    """By its parameters: a backend's name, or something that names its backend."""
    parameters = getattr(item, "callspec", None)
    values = parameters.params.values() if parameters else ()
    named = [getattr(value, "backend", value) for value in values]
    return any(isinstance(name, str) and name in _OTHERS for name in named)


def _chooses_threads(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and "set_num_threads" in item.function.__code__.co_names
