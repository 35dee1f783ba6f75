"""Classifiers on batches of tasks, against direct computations and scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from memformer_lab.solvers.classes import (
    by_known_means,
    discriminant,
    in_context_optimum,
    logistic,
    ridge_classes,
)
from memformer_lab.tasks.mixtures import MixtureBatch, MixtureTasks


def _drawn(d: int, n: int, batch: int = 20, seed: int = 0) -> tuple[MixtureTasks, MixtureBatch]:
    tasks = MixtureTasks(d, 3, 1.5, tuple(1.0 / (k + 1) for k in range(d)), rotation_seed=2)
    return tasks, tasks.draw(batch, torch.Generator().manual_seed(seed), n, queries=10)


def test_known_means_give_the_nearest_one_in_sigmas_metric() -> None:
    tasks, drawn = _drawn(3, 4)
    given, metric = by_known_means(drawn, tasks), torch.linalg.inv(tasks.factor @ tasks.factor.T)
    left = drawn.x[:, 4:, None].double() - drawn.means[:, None].double()
    distance = torch.einsum("bqci,ij,bqcj->bqc", left, metric, left)
    assert torch.equal(given, distance.argmin(-1))


def test_the_optimum_in_context_is_the_average_over_means() -> None:
    """Against likelihoods averaged over means drawn from the prior, each class by its own examples."""
    for d in (2, 5):
        tasks, drawn = _drawn(d, 9, batch=6)
        generator = torch.Generator().manual_seed(1)
        directions = torch.randn(200_000, d, generator=generator, dtype=torch.float64)
        means = 1.5 * directions / directions.norm(dim=1, keepdim=True)
        white = drawn.x.double() @ torch.linalg.inv(tasks.factor).T
        given = in_context_optimum(drawn, tasks)
        for b in range(6):
            scores = []
            for c in range(3):
                own = white[b, :9][drawn.labels[b, :9] == c]
                posterior = (own @ means.T).sum(0).exp()
                likelihood = (white[b, 9:] @ means.T).exp() @ posterior / posterior.sum()
                scores.append(likelihood)
            found = torch.stack(scores, dim=1)
            first, second = found.topk(2, dim=1).values.unbind(1)
            clear = first > 1.03 * second  # closer ones the sampling decides
            assert int(clear.sum()) >= 7
            assert torch.equal(found.argmax(1)[clear], given[b][clear])


def test_no_rule_on_the_examples_is_ahead_of_the_optimum() -> None:
    tasks, drawn = _drawn(4, 12, batch=3000)
    truth = drawn.labels[:, 12:]

    def wrong(given: torch.Tensor) -> float:
        return float((given != truth).double().mean())

    best = wrong(in_context_optimum(drawn, tasks))
    assert wrong(by_known_means(drawn, tasks)) < best
    for given in (discriminant(drawn, 0.3), discriminant(drawn, 1.0), ridge_classes(drawn, 1.0)):
        assert best < wrong(given)


def test_ridge_is_scikit_learns() -> None:
    _, drawn = _drawn(3, 15)
    given = ridge_classes(drawn, 0.7)
    x, labels = drawn.x.double().numpy(), drawn.labels.numpy()
    for b in range(20):
        expected = RidgeClassifier(alpha=0.7).fit(x[b, :15], labels[b, :15]).predict(x[b, 15:])
        np.testing.assert_array_equal(given[b].numpy(), expected)


def test_logistic_regression_is_scikit_learns_and_one_class_is_given() -> None:
    _, drawn = _drawn(3, 15, batch=5)
    drawn.labels[0, :15] = 2
    given = logistic(drawn, 0.5)
    assert (given[0] == 2).all()
    x, labels = drawn.x.double().numpy(), drawn.labels.numpy()
    for b in range(1, 5):
        model = LogisticRegression(C=0.5, max_iter=1000).fit(x[b, :15], labels[b, :15])
        np.testing.assert_array_equal(given[b].numpy(), model.predict(x[b, 15:]))


def test_the_discriminant_is_that_of_the_pooled_covariance() -> None:
    _, drawn = _drawn(3, 15)
    drawn.labels[0, :15] = drawn.labels[0, :15].clamp(max=1)  # the last class has no example
    given, nearest = discriminant(drawn, 0.1), discriminant(drawn, 1.0)
    assert not (given[0] == 2).any()
    for b in range(20):
        x, labels = drawn.x[b].double().numpy(), drawn.labels[b].numpy()
        there = [c for c in range(3) if (labels[:15] == c).any()]
        means = np.stack([x[:15][labels[:15] == c].mean(0) for c in there])
        left = x[:15] - means[[there.index(c) for c in labels[:15]]]
        pooled = left.T @ left / 15
        inverse = np.linalg.inv(0.9 * pooled + 0.1 * np.trace(pooled) / 3 * np.eye(3))
        apart = x[15:, None] - means
        distance = np.einsum("qci,ij,qcj->qc", apart, inverse, apart)
        np.testing.assert_array_equal(given[b].numpy(), np.array(there)[distance.argmin(1)])
        np.testing.assert_array_equal(nearest[b].numpy(), np.array(there)[(apart**2).sum(-1).argmin(1)])
