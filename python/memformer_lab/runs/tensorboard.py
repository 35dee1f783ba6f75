"""TensorBoard logs of a run's metrics, where the tensorboard package is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from memformer_lab.runs.files import naming


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str]) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Gives a function that writes one record of metrics into `folder`, as scalars over the record's "step".

    Raises:
        ValueError: if tensorboard is not installed.
        OSError: if a log cannot be written, naming `folder`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs tensorboard, which is not installed: pip install tensorboard") from error
    with naming(folder):
        writer = SummaryWriter(os.fspath(folder))

    def write(record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                with naming(folder):
                    writer.add_scalar(name, value, int(record["step"]))

    try:
        yield write
    finally:
        with naming(folder):
            writer.close()
