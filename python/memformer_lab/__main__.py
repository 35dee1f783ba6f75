"""`memformer-lab`, which is `python -m memformer_lab` too: the commands, imported so that Ctrl-C ends that quietly."""

import os
import signal
import sys
from collections.abc import Callable

INTERRUPTED = 128 + signal.SIGINT
"""What a shell calls a program that Ctrl-C ended."""


def main() -> None:
    """Entry point of `memformer-lab`. Exit codes: as those of `memformer_lab.cli`, and 130 after Ctrl-C."""
    try:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            # The imports take seconds, and a package may catch whatever is raised in them. Nothing is begun yet that an
            # exit on the spot could leave half done.
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        run = _commands()
        signal.signal(signal.SIGINT, before)
        run()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _commands() -> Callable[[], None]:
    """The commands; where a package of theirs is missing, the end in a line that says what to install."""
    try:
        from memformer_lab.cli import main as run
    except ModuleNotFoundError as error:
        missing = (error.name or "memformer_lab").partition(".")[0]
        if missing in ("memformer_lab", "memformer_kernels"):
            raise
        sys.stderr.write(f"error: memformer-lab needs {missing}: pip install 'memformer_kernels[lab]'\n")
        raise SystemExit(2) from error
    return run


if __name__ == "__main__":
    main()
