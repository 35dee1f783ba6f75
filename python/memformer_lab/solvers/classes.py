"""Classifiers on batches of small tasks, each fitted to its own examples: what a network in context is judged by.

Each is a function of a `MixtureBatch` that returns the classes it gives to the queries, (B, queries) int64.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ive
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import one_hot

from memformer_lab.tasks.mixtures import MixtureBatch, MixtureTasks


def by_known_means(drawn: MixtureBatch, tasks: MixtureTasks) -> Tensor:
    """The Bayes-optimal rule of who knows the means and Sigma: the largest mu_c^T Sigma^-1 x."""
    x, _, means = _whitened(drawn, tasks)
    scores: Tensor = x[:, drawn.context :] @ means.mT
    return scores.argmax(-1)


def in_context_optimum(drawn: MixtureBatch, tasks: MixtureTasks) -> Tensor:
    """The Bayes-optimal rule of who knows Sigma and the radius R, and of the means what labels without flips tell.

    A whitened mean is uniform on the sphere of radius R before the examples, and von Mises-Fisher after them, with the
    sum S_c of its class's whitened examples. The density of a query x under class c is Z(R |S_c + x|) / Z(R |S_c|) but
    for factors that all classes share, with Z(k) = k^-v I_v(k) and v = d / 2 - 1.
    """
    x, labels, _ = _whitened(drawn, tasks)
    sums = labels.mT @ x[:, : drawn.context]
    moved = (sums.unsqueeze(1) + x[:, drawn.context :].unsqueeze(2)).norm(dim=-1)
    scores = _log_normaliser(tasks.radius * moved, tasks.d)
    scores -= _log_normaliser(tasks.radius * sums.norm(dim=-1), tasks.d).unsqueeze(1)
    return scores.argmax(-1)


def discriminant(drawn: MixtureBatch, shrinkage: float) -> Tensor:
    """Linear discriminant analysis with equal priors and the pooled covariance shrunk towards a multiple of I.

    Args:
        drawn: the tasks.
        shrinkage: weight in (0, 1] of tr(S) / d I; at 1 it is the nearest class mean. A class without examples is
            never given.
    """
    x, labels = drawn.x.double(), _one_hot(drawn)
    examples, queries = x[:, : drawn.context], x[:, drawn.context :]
    counts = labels.sum(1)
    means = labels.mT @ examples / counts.clamp(min=1).unsqueeze(-1)
    left = examples - labels @ means
    pooled = left.mT @ left / drawn.context
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    size = pooled.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp(min=torch.finfo(x.dtype).tiny)
    weights = torch.linalg.solve((1 - shrinkage) * pooled + shrinkage * size * identity, means.mT)
    scores: Tensor = queries @ weights - 0.5 * (means.mT * weights).sum(1, keepdim=True)
    return scores.masked_fill(counts.unsqueeze(1) == 0, -torch.inf).argmax(-1)


def ridge_classes(drawn: MixtureBatch, penalty: float) -> Tensor:
    """Ridge regression on one-hot labels with a constant that is not penalised, as scikit-learn's RidgeClassifier.

    Args:
        drawn: the tasks.
        penalty: of |w|^2 against the sum of squared residuals.
    """
    x, labels = drawn.x.double(), _one_hot(drawn)
    examples, queries = x[:, : drawn.context], x[:, drawn.context :]
    centre, share = examples.mean(1, keepdim=True), labels.mean(1, keepdim=True)
    examples = examples - centre
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    gram = examples.mT @ examples + penalty * identity
    weights = torch.linalg.solve(gram, examples.mT @ (labels - share))
    scores: Tensor = (queries - centre) @ weights + share
    return scores.argmax(-1)


def logistic(drawn: MixtureBatch, strength: float) -> Tensor:
    """scikit-learn's LogisticRegression, a fit a task; a task of one class gives that one.

    Args:
        drawn: the tasks.
        strength: its C, the inverse of the penalty.
    """
    x, labels = drawn.x.double().cpu().numpy(), drawn.labels.cpu().numpy()
    found = np.empty((len(x), x.shape[1] - drawn.context), dtype=np.int64)
    for row, features, given in zip(found, x, labels[:, : drawn.context], strict=True):
        if (given == given[0]).all():
            row[:] = given[0]
            continue
        model = LogisticRegression(C=strength, max_iter=1000)
        row[:] = model.fit(features[: drawn.context], given).predict(features[drawn.context :])
    return torch.from_numpy(found).to(drawn.labels.device)


def _one_hot(drawn: MixtureBatch) -> Tensor:
    """(B, n, m) float64, of the labels that the examples were given."""
    return one_hot(drawn.labels[:, : drawn.context], drawn.classes).double()


def _whitened(drawn: MixtureBatch, tasks: MixtureTasks) -> tuple[Tensor, Tensor, Tensor]:
    """Features, one-hot labels of the examples, and means, in float64."""
    inverse = torch.linalg.inv(tasks.factor).to(drawn.x.device)
    return drawn.x.double() @ inverse.T, _one_hot(drawn), drawn.means.double() @ inverse.T


def _log_normaliser(size: Tensor, d: int) -> Tensor:
    """ln of k^-v I_v(k), v = d / 2 - 1; the smallest k that counts is far below what changes the value."""
    order, k = 0.5 * d - 1, size.clamp(min=1e-6)
    bessel = torch.from_numpy(ive(order, k.cpu().numpy())).to(k)
    logarithm: Tensor = bessel.log() + k - order * k.log()
    return logarithm
