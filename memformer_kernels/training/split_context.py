"""Contexts that are split over ranks: each holds a slice of the tokens, and one sum of Gram matrices joins them."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from memformer_kernels.backends.projections import projections
from memformer_kernels.backends.pytorch import recurrence as attention
from memformer_kernels.backends.pytorch.memory import Memory
from memformer_kernels.calls import problem
from memformer_kernels.calls.arguments import DIAGONAL, form_named
from memformer_kernels.calls.checks import check_floating, reject
from memformer_kernels.functional import context_gram
from memformer_kernels.torch_ops import gates
from memformer_kernels.training.ranks import RankLost, check_group, lost

_DIGIT = 2**20
"""Counts of tokens travel as two digits of this base, so that float32 holds their sums."""


def predict_split_context(
    z: Tensor,
    queries: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Predictions (B, queries) of `memformer_predict` for contexts whose tokens are spread over the ranks of a group.

    Communication is one sum of B Gram matrices, whatever the length of the context. Gradients are those of one loss
    that every rank computes from the predictions: whole on every rank for the parameters and the queries, and for z
    those of its own tokens.

    Args:
        z: this rank's slice of every task's labelled tokens, (B, n, D); slices may differ in length, and n may be 0.
        queries: (B, queries, D), the same on every rank, as the parameters are.
        q: as in `memformer_predict`.
        p: as in `memformer_predict`.
        gamma: as in `memformer_predict`, without a token axis.
        beta: as in `memformer_predict`, without a token axis.
        gate: as in `memformer_predict`.
        group: ranks of `torch.distributed`; None: all processes.

    Returns:
        Predictions (B, queries), the same on every rank.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        RankLost: another rank does not answer within the group's timeout.
    """
    check_group(group)
    tokens, own = problem.check_tokens(queries, "queries"), check_floating("z", z)
    if own.ndim != 3 or own.shape[::2] != tokens.shape[::2] or z.dtype != tokens.dtype:
        reject("z", z, f"labelled tokens (B, n, D) = ({tokens.shape[0]}, n, {tokens.shape[2]}) of {tokens.dtype}")
    checked = problem.check_network(tokens, q, p, gamma, beta, gate, tokens.shape[1])
    if checked.token_axis:
        reject("gamma or beta", "a token axis", "none: a split context runs in Gram space")
    if not distributed.is_initialized():
        reject("group", group, "a process group, or None for that of all processes, which is not initialised")
    own = z.new_zeros(z.shape[0], z.shape[2], z.shape[2]) if z.shape[1] == 0 else context_gram(z, z.shape[1])
    total, count = _joined(own, z.shape[1], group)
    if count == 0:
        reject("z", z, "at least one labelled token on some rank")
    q, gamma = gates.fold(gate, q, gamma, beta)
    full_beta = None if beta is None else beta.reshape((1,) * (4 - beta.ndim) + tuple(beta.shape))
    form = form_named(checked.form("gram"))
    memory = Memory(gamma, full_beta, diagonal=form.rule in DIAGONAL)
    start = torch.eye(total.shape[-1], dtype=total.dtype, device=total.device).expand_as(total)
    trace = attention.run(
        start, attention.GramMetric(total / count), *projections(q, p, total.shape[-1]), memory, form.kept(q.shape[1])
    )
    return -(tokens.to(total.dtype) @ trace.states[-1][:, :, -1:])[..., 0]


def _joined(gram: Tensor, count: int, group: ProcessGroup | None) -> tuple[Tensor, int]:
    """The sums over ranks of Gram matrices and of token counts."""
    digits = gram.new_tensor([count // _DIGIT, count % _DIGIT])
    summed: Tensor = _SumOverRanks.apply(torch.cat([gram.flatten(), digits]), group)  # type: ignore[no-untyped-call]
    high, low = (int(digit) for digit in summed[-2:].tolist())
    return summed[:-2].view_as(gram), high * _DIGIT + low


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks. Every rank computes the same loss from it, so the gradient of a rank's term is the sum's."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: ProcessGroup | None) -> Tensor:
        summed = own.clone()
        try:
            distributed.all_reduce(summed, group=group)
        except RuntimeError as error:
            raise RankLost(lost(distributed.get_rank(group), distributed.get_world_size(group), error)) from error
        return summed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
