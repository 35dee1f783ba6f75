"""The examples run at small size and learn; at full size they show what docs/layer.md says (slow)."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'memformer_kernels[lab]'")

from examples import in_context_regressor, language_model

PNG = b"\x89PNG\r\n"


def test_the_language_model_learns(tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    small = ["--steps", "12", "--batch", "4", "--length", "32", "--dim", "32", "--layers", "2", "--heads", "2"]
    losses = language_model.main([*small, "--figure", str(figure)])
    assert len(losses) == 2
    for curve in losses.values():
        assert curve[0] > 5
        assert curve[-1] < curve[0] - 0.5
    assert figure.read_bytes().startswith(PNG)


def test_both_language_models_start_alike() -> None:
    text = language_model.batch(language_model.corpus()[0], 2, 16, torch.Generator().manual_seed(0))
    outs = []
    for memory in ("none", "lfom"):
        torch.manual_seed(0)
        outs.append(language_model.LanguageModel(32, 2, 2, 16, memory)(text[:, :-1]))
    torch.testing.assert_close(*outs)


@pytest.mark.slow
def test_the_regressor_trains_its_encoder_through_the_memformer(tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    errors = in_context_regressor.main(["--steps", "60", "--batch", "128", "--figure", str(figure)])
    encoded, plain = errors["encoder, Memformer, head"], errors["Memformer on x itself"]
    assert encoded[-1] < encoded[0]
    assert encoded[-1] < plain[-1]
    assert figure.read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_regressor_at_full_size(tmp_path: Path) -> None:
    """The encoder finds features in which tasks are linear: x itself explains next to nothing."""
    errors = in_context_regressor.main(["--figure", str(tmp_path / "curves.png")])
    assert errors["encoder, Memformer, head"][-1] < 0.1 * errors["Memformer on x itself"][-1]


@pytest.mark.slow
def test_memory_does_not_hurt_the_language_model(tmp_path: Path) -> None:
    losses = language_model.main(["--steps", "120", "--figure", str(tmp_path / "curves.png")])
    assert losses["with register memory"][-1] < losses["standard blocks"][-1] + 0.05
