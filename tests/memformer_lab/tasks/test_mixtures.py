from __future__ import annotations

import pytest
import torch

from memformer_lab.tasks.mixtures import MixtureTasks


def _tasks() -> MixtureTasks:
    return MixtureTasks(3, 4, 2.0, (1.0, 0.5, 2.0), rotation_seed=1)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_classes_are_gaussian_about_means_of_one_whitened_length() -> None:
    tasks = _tasks()
    drawn = tasks.draw(400, _generator(), 50, queries=50)
    inverse = torch.linalg.inv(tasks.factor).float()
    torch.testing.assert_close((drawn.means @ inverse.T).norm(dim=-1), torch.full((400, 4), 2.0))
    own = drawn.means.gather(1, drawn.labels[..., None].expand(-1, -1, 3))
    white = ((drawn.x - own) @ inverse.T).flatten(0, 1)
    assert float(white.mean(0).abs().max()) < 0.03
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(3), rtol=0.0, atol=0.03)
    shares = drawn.labels.flatten().bincount() / drawn.labels.numel()
    assert float((shares - 0.25).abs().max()) < 0.02


def test_flips_change_the_labels_of_examples_alone() -> None:
    tasks = _tasks()
    clean, flipped = (tasks.draw(300, _generator(), 40, 8, flipped=share) for share in (0.0, 0.3))
    torch.testing.assert_close(clean.x, flipped.x)
    assert torch.equal(clean.labels[:, 40:], flipped.labels[:, 40:])
    moved = (flipped.labels - clean.labels)[:, :40] % 4
    assert abs(float((moved > 0).float().mean()) - 0.3) < 0.02
    assert (moved.flatten().bincount(minlength=4)[1:] > 1000).all()
    always = tasks.draw(300, _generator(), 40, 8, flipped=1.0)
    assert (always.labels[:, :40] != clean.labels[:, :40]).all()


def test_tokens_hold_labels_of_examples_and_ask_for_those_of_queries() -> None:
    drawn = _tasks().draw(5, _generator(), 6, 2)
    z, target = drawn.tokens()
    assert z.shape == (5, 8, 7)
    assert target.shape == (5, 2, 4)
    torch.testing.assert_close(z[..., :3], drawn.x)
    assert torch.equal(z[:, :6, 3:].argmax(-1), drawn.labels[:, :6])
    assert torch.equal(target.argmax(-1), drawn.labels[:, 6:])
    assert not z[:, 6:, 3:].any()
    torch.testing.assert_close(target.sum(-1), torch.zeros(5, 2))


def test_what_does_not_fit_is_refused() -> None:
    for arguments, words in (
        ((3, 1, 2.0, (1.0,) * 3), "classes must be at least 2, got 1"),
        ((3, 2, 0.0, (1.0,) * 3), "radius must be positive and finite, got 0.0"),
        ((3, 2, 2.0, (1.0,) * 2), "scales must be d=3 positive finite numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            MixtureTasks(*arguments)
    for context, flipped in ((0, 0.0), (4, 1.5)):
        with pytest.raises(ValueError, match="expected context >= 1 and flipped in"):
            _tasks().draw(2, _generator(), context, flipped=flipped)
