"""The GPUs that a test asks for: of both backends, or of the one whose folder it is in."""

from collections.abc import Iterator

import pytest

from tests.gpu.gpus import BACKENDS, Gpu, opened, real, virtual


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`gpu`: an NVIDIA GPU, where there is one, and a virtual one. `nvidia`: what a virtual GPU has not is needed, such
    as torch's own graphs, streams and allocator, several devices, gigabytes."""
    folder = metafunc.definition.path.parent.name
    backends = [name for name in BACKENDS if folder in (name, "gpu")]
    chosen = any(mark.args[0][0] == "gpu" for mark in metafunc.definition.iter_markers("parametrize"))
    if "gpu" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("gpu", [kind(name) for name in backends for kind in (real, virtual)], indirect=True)
    if "nvidia" in metafunc.fixturenames:
        metafunc.parametrize("nvidia", [real(name) for name in backends])


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    with opened(request.param) as found:
        yield found
