"""Processes of `torch.distributed` that share one batch: who computes which block, and one order of adding them."""

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from memformer_kernels.calls.checks import reject_kind


class RankLost(RuntimeError):
    """Another rank died or did not answer within the group's timeout. The state is that of before the step."""


def check_group(group: object) -> None:
    """A process group of torch.distributed, this process's or not, or None."""
    known = group is None or group is distributed.GroupMember.NON_GROUP_MEMBER
    if not known and not isinstance(group, ProcessGroup):
        reject_kind("group", group, "a ProcessGroup of torch.distributed, or None")


class Ranks:
    """The ranks of a process group; without a group one, which computes everything.

    Raises ValueError for a group that this process is not in, TypeError for what is no group.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        check_group(group)
        self.group = group
        self.size = 1 if group is None else distributed.get_world_size(group)
        self.rank = 0 if group is None else distributed.get_rank(group)
        if self.rank < 0:
            raise ValueError("group: expected a process group that this process is in")

    def share(self, blocks: int, rank: int | None = None) -> range:
        """The blocks of a rank (this one): consecutive, at most one more than any other's."""
        place = self.rank if rank is None else rank
        return range(blocks * place // self.size, blocks * (place + 1) // self.size)

    def gather(self, own: Tensor, blocks: int) -> Tensor:
        """All ranks' sums (M, blocks, P), in the order of the blocks, from this rank's (M, own blocks, P).

        Raises RankLost.
        """
        if self.group is None or self.size == 1:
            return own
        most = max(len(self.share(blocks, rank)) for rank in range(self.size))
        sent = own.new_zeros(own.shape[0], most, own.shape[2])
        sent[:, : own.shape[1]] = own
        received = self._gather(sent)
        parts = [part[:, : len(self.share(blocks, rank))] for rank, part in enumerate(received)]
        return torch.cat(parts, 1)

    def check_agreement(self, numbers: Iterable[int], tensors: Iterable[Tensor]) -> None:
        """Raises ValueError unless these are the same on every rank, since they would train apart unnoticed."""
        if self.group is None or self.size == 1:
            return
        held = list(tensors)
        checksum = 0
        for tensor in held:
            checksum = zlib.crc32(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes(), checksum)
        own = torch.tensor([checksum, *numbers], dtype=torch.int64, device=held[0].device)
        for rank, other in enumerate(self._gather(own)):
            if not torch.equal(other, own):
                raise ValueError(
                    f"state: expected the same state, batch and steps on every rank, got others on rank {rank} than on "
                    f"rank {self.rank}"
                )

    def _gather(self, own: Tensor) -> list[Tensor]:
        received = [torch.empty_like(own) for _ in range(self.size)]
        try:
            distributed.all_gather(received, own, group=self.group)
        except RuntimeError as error:
            raise RankLost(lost(self.rank, self.size, error)) from error
        return received


def lost(rank: int, size: int, error: Exception) -> str:
    """What to say of a collective that failed."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"rank {rank} of {size}: another rank died or did not answer within the process group's timeout; "
        f"start all ranks again from the last checkpoint ({reason})"
    )
