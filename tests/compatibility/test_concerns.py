import gc
import time
import weakref

from tests.compatibility.concerns import interrupted_after


class Held:
    """What a weak reference may point to."""


def test_an_interrupt_that_a_weak_reference_drops_is_heard() -> None:
    """More than half of the time passes in a callback, which drops what is raised in it."""
    with interrupted_after(0.05):
        while True:
            held = Held()
            reference = weakref.ref(held, lambda _: time.sleep(0.004))
            del held
            time.sleep(0.003)
            assert reference() is None


def test_an_interrupt_that_the_garbage_collector_drops_is_heard() -> None:
    def busy(phase: str, _: dict[str, int]) -> None:
        time.sleep(0.004)

    gc.callbacks.append(busy)
    try:
        with interrupted_after(0.05):
            while True:
                gc.collect(0)
                time.sleep(0.003)
    finally:
        gc.callbacks.remove(busy)
