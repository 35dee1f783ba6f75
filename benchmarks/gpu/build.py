"""`python -m benchmarks.gpu.build`: the native libraries in the source tree, with CUDA code for the GPUs that are here.

A step of its own, before `benchmarks.gpu`: a process loads a library once, and no other after it. A library
of other sources must not be measured, so a build that fails leaves none, and its reason in the library's place.
"""

import json
import os
import subprocess
import sys

from benchmarks.measure.sources import ROOT

LIBRARIES = ROOT / "memformer_kernels" / "_lib"


def main() -> None:
    """Builds; exit status 1, and no library, where the compiler fails."""
    environment = dict(os.environ)
    if architectures := capabilities():
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    command = [sys.executable, "setup.py", "-q", "build_native", "--inplace"]
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0:
        return
    for name in ("memformer_cpu", "memformer_cuda"):
        (LIBRARIES / f"{name}.so").unlink(missing_ok=True)
        reason = {"reason": f"`{' '.join(command[1:])}` failed here"}
        (LIBRARIES / f"{name}.json").write_text(json.dumps(reason) + "\n", encoding="utf-8")
    raise SystemExit(1)


def capabilities() -> str:
    """The compute capabilities of the GPUs here, as TORCH_CUDA_ARCH_LIST takes them; empty where no driver tells."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ";".join(f"{capability}+PTX" for capability in sorted(set(listed.split())))


if __name__ == "__main__":
    main()
