"""`python -m benchmarks.gpu.build`: the native libraries in the source tree, with CUDA code for the GPUs that are here.

A step of its own, before `benchmarks.gpu`: a process loads a library once, and no other after it. A library
of other sources must not be measured, so a build that fails leaves none, and its reason in the library's place. One
whose time is over leaves its objects, with which the next one goes on.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.gpu import PACKAGES
from benchmarks.measure.sources import ROOT

LIBRARIES = ROOT / "memformer_kernels" / "_lib"

_BUILD = """
from pathlib import Path
from native_build import CannotBuild, build
try:
    build(Path.cwd(), Path("build", "native"), Path.cwd() / "memformer_kernels" / "_lib", quiet=True)
except CannotBuild as reason:  # which is in the libraries' place
    print(reason)
"""
COMMAND = (sys.executable, "-c", _BUILD)
"""As setup.py builds, which takes a setuptools that not every machine has."""


def main(until: float | None = None) -> None:
    """Builds; exit status 1, and no library, where the compiler fails or is not done by then (seconds since 1970)."""
    environment = dict(os.environ)
    if architectures := capabilities():
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    if PACKAGES.is_dir():
        # Behind the interpreter's own, as everywhere: ninja may be among them.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        environment["PATH"] = os.pathsep.join([environment.get("PATH", os.defpath), str(PACKAGES / "bin")])
    ended = _run(COMMAND, environment, None if until is None else max(1.0, until - time.time()))
    if ended == 0:
        return
    LIBRARIES.mkdir(parents=True, exist_ok=True)
    for name in ("memformer_cpu", "memformer_cuda"):
        (LIBRARIES / f"{name}.so").unlink(missing_ok=True)
        how = "failed here" if ended is not None else "had no time to end: the next run goes on"
        reason = {"reason": f"the build of the native libraries {how}"}
        (LIBRARIES / f"{name}.json").write_text(json.dumps(reason) + "\n", encoding="utf-8")
    raise SystemExit(1)


def _run(command: Sequence[str], environment: dict[str, str], seconds: float | None) -> int | None:
    """A command's exit status; None where it took longer and was ended, with its children."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None


def capabilities() -> str:
    """The compute capabilities of the GPUs here, as TORCH_CUDA_ARCH_LIST takes them; empty where no driver tells."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ";".join(f"{capability}+PTX" for capability in sorted(set(listed.split())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--until", type=float, default=None, help="seconds since 1970")
    main(parser.parse_args().until)
