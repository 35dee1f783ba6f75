"""Where the virtual GPU cannot be built, its tests are skipped for that reason."""

import pytest

from virtual_gpu import build


@pytest.fixture(autouse=True)
def _built() -> None:
    reason = build.reason_against()
    if reason is not None:
        pytest.skip(reason)
