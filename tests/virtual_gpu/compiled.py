"""Headers of the virtual GPU as functions of arrays: a C++ file of this folder, compiled as the machine is."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from virtual_gpu import build

ROOT = Path(__file__).parents[2]


class Library:
    """A C++ file's functions; arrays among the arguments are passed as addresses and keep their types and sizes."""

    def __init__(self, source: Path, folder: Path) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("no g++ to compile the virtual GPU with")
        made = folder / f"{source.stem}.so"
        flags = [*build.FLAGS, "-Werror", "-fvisibility=default", "-shared", f"-I{ROOT / 'python'}"]
        subprocess.run([compiler, *flags, str(source), "-o", str(made)], check=True)
        self._library = ctypes.CDLL(str(made))

    def __call__(self, function: str, *arguments: Any) -> bool:
        """Whether the function knew what it was asked for."""
        return bool(self.number(function, *arguments) & 0xFF)

    def number(self, function: str, *arguments: Any) -> int:
        """What the function returns, in 32 bits."""
        passed: list[Any] = []
        for value in arguments:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                passed.append(ctypes.c_void_p(value.ctypes.data))
            elif isinstance(value, str):
                passed.append(ctypes.c_char_p(value.encode()))
            elif value is None:
                passed.append(ctypes.c_void_p())
            else:
                passed.append(ctypes.c_size_t(value))
        called = self._library[function]
        called.restype = ctypes.c_uint32
        return int(called(*passed))
