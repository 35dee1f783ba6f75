"""The two ways a build ends without a library, and the switches that choose between them."""

import os
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


class CannotBuild(Exception):
    """Something that a build needs is not here, or is not wanted; the message names the fix."""


class BuildFailed(Exception):
    """The tools are here and failed."""


def wanted(name: str) -> bool:
    """Whether an environment variable is set to 1. Raises BuildFailed for anything but 0, 1 and nothing."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildFailed(f"{name} must be 0 or 1, not {value!r}")
    return value == "1"


def unless_skipped(skip: str, force: str, find: Callable[[], Found]) -> Found:
    """What `find` finds. Raises CannotBuild where it does, or if skipping is wanted; BuildFailed if it was demanded."""
    skipped, forced = wanted(skip), wanted(force)
    if skipped and forced:
        raise BuildFailed(f"{skip}=1 and {force}=1 contradict each other; unset one")
    if skipped:
        raise CannotBuild(f"{skip}=1 was set; install again without it")
    try:
        return find()
    except CannotBuild as reason:
        if forced:
            raise BuildFailed(f"{force}=1 is set, but {reason}") from reason
        raise
