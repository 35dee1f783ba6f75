"""Where there is a GPU, backend="cuda" takes the tests' CPU tensors too."""

from collections.abc import Iterator

import pytest
import torch

from memformer_kernels import backends, build
from tests.memformer_kernels.moving import MovingBackend


@pytest.fixture(scope="session", autouse=torch.cuda.is_available() and build.available("cuda"))
def _tensors_move_to_the_gpu() -> Iterator[None]:
    require = build.require

    def lenient(backend: str, device: str) -> None:
        require(backend, "cuda" if backend == "cuda" else device)

    patch = pytest.MonkeyPatch()
    patch.setitem(backends.BACKENDS, "cuda", MovingBackend(backends.BACKENDS["cuda"], "cuda"))
    patch.setattr(build, "require", lenient)
    yield
    patch.undo()
