"""What a handler raises while Python runs a callback that drops it: of a weak reference, of the garbage collector."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def heard_again(raised: type[BaseException], send: Callable[[float], object]) -> Iterator[None]:
    """Has the signal sent once more, by `send(seconds from now)`, wherever Python drops what its handler raised."""
    before = sys.unraisablehook

    def dropped(what: Any) -> None:
        if issubclass(what.exc_type, raised):
            # Not at once, since what a handler raises within this hook is dropped too; nor in step with callbacks.
            send(random.uniform(0.002, 0.02))
        else:
            before(what)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = before
