"""What runs on a GPU or a virtual one, and what the compilers make of the kernels.

Packages that were copied with the tree serve where the interpreter has none of its own.
"""

import sys
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[2] / ".gpu-packages"
"""What `make gpu-packages` fills."""

if PACKAGES.is_dir():
    sys.path.append(str(PACKAGES))
