"""Where the three packages live, and the command that builds the native libraries. The metadata is in pyproject.toml.

Nothing here imports torch. A build that cannot make the native libraries makes a pure-Python package and says why.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import CompileError, OptionError

ROOT = Path(__file__).resolve().parent
# A build front end runs this file without its folder on the path.
sys.path.insert(0, str(ROOT))

import native_build  # noqa: E402
from native_build import cpu, cuda  # noqa: E402

FOLDER = Path("memformer_kernels", "_lib")


def finds(find: Callable[[], object]) -> bool:
    try:
        find()
    except native_build.CannotBuild:
        return False
    except native_build.BuildFailed as failure:
        raise CompileError(str(failure)) from failure
    return True


def builds_native() -> bool:
    return finds(native_build.find_toolchain)


class BuildNative(Command):
    """Compiles csrc into the shared objects that the package loads when they are first used."""

    description = "build the native libraries"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = [
        ("inplace", "i", "put the library into the source tree"),
        (
            "sanitizer=",
            None,
            "build the CPU library alone, with AddressSanitizer and UBSan (address) or ThreadSanitizer (thread), into "
            "<build-base>/sanitized/<sanitizer>",
        ),
        ("here", None, "bring the libraries in place up to date; where none is, build for this processor alone"),
    ]
    boolean_options: ClassVar[list[str]] = ["inplace", "here"]

    def initialize_options(self) -> None:
        self.inplace = False
        self.sanitizer: str | None = None
        self.here = False
        self.editable_mode = False
        self.build_base: str | None = None
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_base", "build_base"), ("build_lib", "build_lib"))
        if self.sanitizer not in (None, *cpu.SANITIZERS):
            raise OptionError(f"--sanitizer={self.sanitizer} is not one of {', '.join(cpu.SANITIZERS)}")

    def run(self) -> None:
        base = Path(self.build_base or "build")
        folder = base / ("native" if self.sanitizer is None else f"native-{self.sanitizer}")
        quiet = self.distribution.verbose < 1
        try:
            native_build.build(
                ROOT, folder, self._destination(), sanitizer=self.sanitizer, here=bool(self.here), quiet=quiet
            )
        except native_build.CannotBuild as reason:
            print(f"memformer_kernels without its native libraries: {reason}", file=sys.stderr, flush=True)
        except native_build.BuildFailed as failure:
            raise CompileError(str(failure)) from failure

    def _destination(self) -> Path:
        if self.sanitizer is not None:
            return Path(self.build_base or "build") / "sanitized" / self.sanitizer
        return ROOT / FOLDER if self.inplace or self.editable_mode else Path(self.build_lib or ".") / FOLDER

    def get_outputs(self) -> list[str]:
        names = [cpu.RECORD, cuda.RECORD]
        if builds_native():
            names += [cpu.LIBRARY, *([cuda.LIBRARY] if finds(cuda.find_cuda) else [])]
        return [str(Path(self.build_lib or ".") / FOLDER / name) for name in names]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.editable_mode:
            return {}
        return {output: str(ROOT / FOLDER / Path(output).name) for output in self.get_outputs()}


class BuildWithNative(build):
    sub_commands: ClassVar = [*build.sub_commands, ("build_native", None)]


class NativeDistribution(Distribution):
    """A package with compiled code, although none of it is a Python extension module."""

    def has_ext_modules(self) -> bool:
        return builds_native()


class Wheel(bdist_wheel):
    """One wheel serves every Python: the library uses the stable ABI of torch and nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, machine = super().get_tag()
        return (python, abi, machine) if self.root_is_pure else ("py3", "none", machine)


setup(
    distclass=NativeDistribution,
    cmdclass={"build": BuildWithNative, "build_native": BuildNative, "bdist_wheel": Wheel},
    packages=[
        *find_packages(include=["memformer_kernels", "memformer_kernels.*"]),
        *find_packages("python", include=["memformer_lab", "memformer_lab.*", "virtual_gpu", "virtual_gpu.*"]),
    ],
    package_dir={"memformer_lab": "python/memformer_lab", "virtual_gpu": "python/virtual_gpu"},
    package_data={
        "memformer_kernels": ["py.typed"],
        "memformer_lab": ["py.typed", "data/*.safetensors"],
        # Sources, which are compiled where the virtual GPU is first used.
        "virtual_gpu": ["py.typed", "machine/*.cpp", "machine/*.h"],
        "virtual_gpu.cuda": ["*.cpp", "*.h"],
    },
)
