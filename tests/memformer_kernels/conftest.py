"""Where there is a GPU, backend="cuda" takes the tests' CPU tensors too, and "triton" where its tests are asked for."""

import os
from collections.abc import Iterator

import pytest
import torch

from memformer_kernels import backends, build
from tests.memformer_kernels.moving import MovingBackend

_MOVED = [
    name
    for name in ("cuda", "triton")
    if torch.cuda.is_available()
    and build.available(name)
    and (name == "cuda" or (os.environ.get("MEMFORMER_TEST_TRITON") == "1" and not build.INTERPRETS))
]


@pytest.fixture(scope="session", autouse=bool(_MOVED))
def _tensors_move_to_the_gpu() -> Iterator[None]:
    require = build.require

    def lenient(backend: str, device: str) -> None:
        require(backend, "cuda" if backend in _MOVED else device)

    patch = pytest.MonkeyPatch()
    for name in _MOVED:
        patch.setitem(backends.BACKENDS, name, MovingBackend(backends.BACKENDS[name], "cuda"))
    patch.setattr(build, "require", lenient)
    yield
    patch.undo()
