"""`memformer-lab`, which is `python -m memformer_lab` too: the commands, imported so that Ctrl-C ends that quietly."""

import os
import signal

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
        from memformer_lab.cli import main as run

        signal.signal(signal.SIGINT, before)
        run()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
