"""A worker process of `parallel`: does the jobs that come on standard input, answers on standard output.

Run as a script, since a worker must end with its parent from the first moment on, also while it imports torch for
seconds: nothing but the standard library is imported before a thread watches standard input, whose end is the
parent's, however that ended.
"""

import ctypes
import gc
import os
import pickle
import sys
import threading
import traceback
from queue import SimpleQueue
from typing import IO, Any


def packed(content: object) -> bytes:
    """A message of one of the lab's processes to another, through a pipe that nobody else has; tensors by value."""
    return pickle.dumps(content)


def unpacked(message: bytes) -> Any:
    """What another of the lab's processes, and nobody else, has packed."""
    return pickle.loads(message)


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one message, its length before it.

    Raises:
        OSError: if nobody reads any more.
    """
    stream.write(len(message).to_bytes(8, "little") + message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """The next whole message; None where the stream ends."""
    head = stream.read(8)
    message = stream.read(int.from_bytes(head, "little"))
    return message if len(head) == 8 and len(message) == int.from_bytes(head, "little") else None


def main() -> None:
    """Take the module search path, then one job after another, until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    # What a job prints is no answer.
    os.dup2(2, 1)
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_watch, args=(messages,), daemon=True).start()
    sys.path[:] = unpacked(messages.get())
    while True:
        _answer(messages.get(), answers)
        _give_memory_back()


def _watch(messages: SimpleQueue[bytes]) -> None:
    while (message := receive(sys.stdin.buffer)) is not None:
        messages.put(message)
    os._exit(1)


def _answer(message: bytes, answers: IO[bytes]) -> None:
    def tell(*content: Any) -> None:
        words = packed(content)
        try:
            send(answers, words)
        except OSError:
            # The parent ended, which `_watch` is about to see.
            os._exit(1)

    try:
        job = unpacked(message)
        tell("result", job.function(*job.arguments, lambda units, text: tell("report", units, text)))
    except BaseException as error:
        tell("error", _portable(error), traceback.format_exc())


def _give_memory_back() -> None:
    """What a job left free returns to the system: glibc keeps it, gigabytes after a long experiment."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _portable(error: BaseException) -> BaseException:
    """The error, or one of its text where it cannot travel."""
    try:
        unpacked(packed(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
