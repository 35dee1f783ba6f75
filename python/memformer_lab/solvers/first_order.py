"""Memformers as methods on H and b: which ones read nothing else, the first-order method they run, their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from memformer_kernels import lfom_solve
from memformer_kernels.nn import Memformer
from memformer_lab.tasks.families import FamilyTasks
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.standardised import StandardisedTasks

Tasks = GaussianTasks | StandardisedTasks | FamilyTasks

Draw = Callable[[int, Generator], TaskBatch]
"""(batch, generator) -> tasks."""


class FirstOrderMethod(NamedTuple):
    """The parameters of `memformer_kernels.lfom_solve`: a (L, d, d), gamma (L, L, 1), beta (L, 1), or None."""

    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None

    def solver(self, *, layers: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """(h, b) -> weights (R, B, d): R = 1 for the last layer's alone, R = L with `layers`."""

        def solve(h: Tensor, b: Tensor) -> Tensor:
            # Sampled quadratics come with the batch axis last; every layer reads h again.
            weights = lfom_solve(h.contiguous(), b.contiguous(), self.a, self.gamma, self.beta, layers=layers)
            return weights if layers else weights.unsqueeze(0)

        return solve


def first_order_method(model: Memformer) -> FirstOrderMethod | None:
    """The method that a model runs on g = b - H w, or None where it is not one.

    A response-only model whose gamma and beta have no token axis moves the response column alone, so only the last
    feature of gamma and beta counts (Dutta & Sra, arXiv 2410.07263). Heads that share gamma and beta are one head, with
    the sum of their matrices. Of one head, gates fold into gamma.
    """
    if model.structure != "response-only" or not reads_statistics_alone(model):
        return None
    arguments, layers = model.stack_arguments(), model.layers
    q, gamma, beta, gate = arguments["q"], arguments["gamma"], arguments["beta"], arguments["gate"]
    if model.heads > 1 and (gate is not None or any(one is not None and one.shape[-3] > 1 for one in (gamma, beta))):
        return None
    if gamma is not None and gamma.ndim == 4:
        gamma = torch.diag_embed(gamma[:, 0, 0, -1].expand(layers))[..., None]
    elif gamma is not None:
        gamma = gamma[:, :, 0, 0, -1:]
    if gate is not None:
        gates = gate.reshape(-1, 1, 1)
        gamma = torch.eye(layers, dtype=q.dtype, device=q.device)[..., None] * gates if gamma is None else gamma * gates
    return FirstOrderMethod(q.sum(1), gamma, None if beta is None else beta[:, 0, 0, -1:])


def reads_statistics_alone(model: Memformer) -> bool:
    """Whether a prediction depends on the context through H and b alone and is linear in the query.

    So it is with response-only and block structure, unless gamma or beta differ from token to token. Tasks have one
    response here, which a model of several does not read.
    """
    arguments = model.stack_arguments()
    weights = (arguments["gamma"], arguments["beta"])
    if model.responses != 1:
        return False
    return model.structure != "dense" and all(weight is None or weight.shape[-2] == 1 for weight in weights)


def draws_statistics(model: Memformer, tasks: Tasks) -> bool:
    """Whether tasks can be drawn as statistics with the query integrated out, without changing the expected loss."""
    return isinstance(tasks, GaussianTasks) and tasks.n >= tasks.d and reads_statistics_alone(model)


def drawer(models: Sequence[Memformer], tasks: Tasks, queries: int = 1) -> Draw:
    """How several models' tasks are drawn: as statistics where that is the same for all of them, else as tokens.

    Args:
        models: what reads the tasks.
        tasks: the distribution.
        queries: random queries a task, where tokens are drawn.
    """
    if isinstance(tasks, GaussianTasks) and all(draws_statistics(model, tasks) for model in models):
        return tasks.compressed
    return lambda batch, generator: tasks.tokens(batch, generator, queries)


def implied_weights(model: Memformer, gram: Tensor) -> Tensor:
    """Weights w with prediction w . x for every query x: (B, d).

    A network that reads its context through the Gram matrix alone and whose predictions are linear in the query
    (`reads_statistics_alone`) is given the d unit queries, on the D = d + 1 tokens whose Gram
    matrix divided by D is `gram`.

    Args:
        model: such a network.
        gram: (B, D, D) symmetric positive semi-definite, the context's Gram matrix divided by its length.
    """
    batch, width = gram.shape[:2]
    values, vectors = torch.linalg.eigh(gram)
    root = (values.clamp(min=0) * width).sqrt().unsqueeze(1) * vectors
    z = gram.new_zeros(batch, 2 * width - 1, width)
    z[:, :width] = root.mT
    z[:, width:, :-1] = torch.eye(width - 1, dtype=gram.dtype, device=gram.device)
    return model.predict(z, context=width)
