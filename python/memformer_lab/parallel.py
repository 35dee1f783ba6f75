"""Independent jobs over worker processes of one thread each, with progress."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

Report = Callable[[int, str], None]
"""(units done, what to show)"""


@dataclass(frozen=True)
class Job:
    """A call of a module-level function with plain arguments, to run anywhere.

    Attributes:
        function: called with `arguments` and then a `Report`; its result must be plain data.
        arguments: positional arguments.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Workers:
    """A pool of `count` worker processes of one thread each; 1 runs jobs in this process, on one thread as well.

    What a job computes therefore does not depend on the number of workers. Use as a context manager.

    Raises:
        ValueError: if count < 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Forking a process that runs torch's threads can deadlock the child; spawning starts clean.
            spawn = multiprocessing.get_context("spawn")
            self._messages: multiprocessing.Queue[tuple[int, str]] = spawn.Queue()
            self._pool = ProcessPoolExecutor(count, spawn, initializer=_enter_worker, initargs=(self._messages,))
            for _ in range(count):
                # Workers import torch, for seconds, while this process prepares their jobs.
                self._pool.submit(_nothing)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job], report: Report) -> list[Any]:
        """The jobs' results, in order. Jobs start in order, so the longest should come first.

        Raises:
            Exception: the first that a job raises.
        """
        if self._pool is None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return [job.function(*job.arguments, report) for job in jobs]
            finally:
                torch.set_num_threads(threads)
        futures = [self._pool.submit(_call, job) for job in jobs]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            self._forward(report)
            for future in done:
                future.result()
        self._forward(report)
        return [future.result() for future in futures]

    def _forward(self, report: Report) -> None:
        while True:
            try:
                report(*self._messages.get_nowait())
            except queue.Empty:
                return


_messages: multiprocessing.Queue[tuple[int, str]] | None = None


def _enter_worker(messages: multiprocessing.Queue[tuple[int, str]]) -> None:
    global _messages
    _messages = messages
    torch.set_num_threads(1)


def _nothing() -> None:
    """A job that only makes a worker start."""


def _call(job: Job) -> Any:
    assert _messages is not None
    return job.function(*job.arguments, lambda units, text: _messages.put((units, text)))
