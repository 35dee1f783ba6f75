"""What a call allocates, by the profiler's record of every allocation of a CPU's memory."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that a call holds at a time of those that it allocated, its result among them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = call()
    held = most = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del result
    return most
