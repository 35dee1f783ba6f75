"""Where there is a GPU, backend="cuda" takes the tests' CPU tensors too, and "triton" where its tests are asked for."""

import pytest

from memformer_kernels import availability, backends
from tests.memformer_kernels import moving

_MOVED = moving.served()


@pytest.fixture(autouse=True)
def _tensors_move_to_the_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a test about tensors that a backend refuses: they stay where they are on a machine with a GPU too."""
    if not _MOVED or request.node.get_closest_marker("tensors_stay"):
        return
    require = availability.require

    def lenient(backend: str, device: str, index: int = 0) -> None:
        require(backend, "cuda" if backend in _MOVED else device, index)

    for name in _MOVED:
        monkeypatch.setitem(backends.BACKENDS, name, moving.MovingBackend(backends.BACKENDS[name], "cuda"))
    monkeypatch.setattr(availability, "require", lenient)
