"""Several processes: independent jobs over workers of one thread each, with progress; and the ranks of torchrun."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from memformer_lab.runs import worker

Report = Callable[[int, str], None]
"""(units done, what to show)"""

TIMEOUT = datetime.timedelta(minutes=2)
"""How long a rank waits for the others before it says that one is lost; one that dies is noticed at once."""


@dataclass(frozen=True)
class Job:
    """A call of a function with plain arguments, to run anywhere.

    Attributes:
        function: called with `arguments` and then a `Report`; of the top level of a module that can be imported. Its
            result must be plain data.
        arguments: positional arguments.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Workers:
    """A pool of `count` worker processes of one thread each; 1 runs jobs in this process, on one thread as well.

    What a job computes therefore does not depend on the number of workers. Use as a context manager: its end, by an
    error or an interrupt as well, ends the workers and what they were doing. Should this process be killed, they end
    by themselves. An interrupt from the keyboard reaches this process alone.

    Raises:
        ValueError: if count < 1.
        OSError: if a process cannot be started.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        self.count = count
        self._inbox: SimpleQueue[tuple[_Worker, bytes | None]] = SimpleQueue()
        self._idle: list[_Worker] = []
        self._workers: list[_Worker] = []
        try:
            for _ in range(count if count > 1 else 0):
                self._workers.append(_Worker(self._inbox))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._workers:
            one.end()

    def run(self, jobs: Sequence[Job], report: Report) -> list[Any]:
        """The jobs' results, in order. Jobs start in order, so the longest should come first.

        Raises:
            Exception: the first that a job raises.
            ChildProcessError: if a worker died.
        """
        if self.count == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return [job.function(*job.arguments, report) for job in jobs]
            finally:
                torch.set_num_threads(threads)
        waiting = deque(enumerate(jobs))
        doing: dict[_Worker, int] = {}
        results: dict[int, Any] = {}
        while len(results) < len(jobs):
            while self._idle and waiting:
                one = self._idle.pop()
                doing[one], job = waiting.popleft()
                one.give(job)
            one, kind, content = self._next()
            # A worker may still be at its start, or at a job of a run that an error ended: nobody waits for that.
            number = doing.get(one)
            if kind != "report":
                self._idle.append(one)
                doing.pop(one, None)
            if number is None:
                continue
            if kind == "report":
                report(*content)
            elif kind == "result":
                (results[number],) = content
            else:
                error, trace = content
                raise error from ChildProcessError(f"in a worker process:\n{trace}")
        return [results[number] for number in range(len(jobs))]

    def _next(self) -> tuple[_Worker, str, tuple[Any, ...]]:
        while True:
            # With a timeout, for systems where a wait without one cannot be interrupted from the keyboard.
            with suppress(Empty):
                one, message = self._inbox.get(timeout=0.2)
                break
        if message is None:
            raise ChildProcessError(f"a worker process died: {one.fate()}")
        kind, *content = worker.unpacked(message)
        return one, kind, tuple(content)


def is_writer(group: ProcessGroup | None) -> bool:
    """Whether this process writes files and shows progress: the first of a group, or one that is alone."""
    return group is None or distributed.get_rank(group) == 0


@contextmanager
def process_group() -> Iterator[ProcessGroup | None]:
    """The group of all ranks, None without torchrun. On a failure the others are not waited for."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield None
        return
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


class _Worker:
    """One process that runs `worker`, and a thread that puts its answers into an inbox, None when they end."""

    def __init__(self, inbox: SimpleQueue[tuple[_Worker, bytes | None]]) -> None:
        with _no_interrupts():
            self._process = subprocess.Popen(
                [sys.executable, worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if sys.stderr is None else None,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._inbox = inbox
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._send(sys.path)
        # Workers import torch, for seconds, while this process prepares their jobs.
        self.give(Job(_begin))

    def give(self, job: Job) -> None:
        self._send(job)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # What was not sent yet, nobody reads any more.
            with suppress(BrokenPipeError):
                stream.close()

    def fate(self) -> str:
        code = self._process.wait()
        return f"exit code {code}" if code >= 0 else f"by signal {-code}"

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        # A worker that died says so by its answers' end.
        with suppress(BrokenPipeError):
            worker.send(self._process.stdin, worker.packed(value))

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while (message := worker.receive(self._process.stdout)) is not None:
            self._inbox.put((self, message))
        self._inbox.put((self, None))


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes started inside never see an interrupt from the keyboard; on Windows a process group does that."""
    if os.name == "nt":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_: Report) -> None:
    torch.set_num_threads(1)
