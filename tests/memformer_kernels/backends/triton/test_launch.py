"""For which GPU kernels choose and are compiled."""

from typing import Any

import pytest
import torch

from memformer_kernels.backends.triton import launch, rules


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if kernels were compiled here."""
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch, "triton_on_host", lambda: None)


def _options(capability: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    with launch.compiling_for(capability), launch.observed(lambda kernel, _, arguments: found.append(arguments)):
        launch.launch(object(), 1, z=torch.zeros(1), num_warps=4)
    return found[0]


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120, 121])
def test_kernels_are_compiled_to_a_gpus_own_instructions(capability: int) -> None:
    with launch.compiling_for(capability):
        assert launch.architecture(torch.device("cpu")) == capability
        assert rules.wgmma(launch.architecture(torch.device("cpu"))) == (capability == 90)
    assert "arch" not in _options(capability)


@pytest.mark.parametrize("capability", [100, 103])
def test_where_products_of_a_gpus_own_have_been_wrong_kernels_are_compiled_to_others(capability: int) -> None:
    with launch.compiling_for(capability):
        assert launch.architecture(torch.device("cpu")) == 80
        assert not rules.wgmma(launch.architecture(torch.device("cpu")))
    assert _options(capability)["arch"] == "sm80"
