"""The machine's library, compiled from machine/*.cpp when it is first used and when a source has changed."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from virtual_gpu.locks import locked

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "machine"


def destination(folder: Path) -> Path:
    """Where a package in `folder` keeps its library: beside it in a source tree, else among the user's caches, since
    nobody takes away what an installed package has written into itself."""
    if (folder.parents[1] / "pyproject.toml").is_file():
        return folder / "_lib"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "virtual_gpu" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


DESTINATION = destination(FOLDER)
LIBRARY = "machine.so"
FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    # GCC 12 makes wrong code of wgmma.h's read_matrix with it: it reads chunks one after another that lie apart.
    "-fno-tree-slp-vectorize",
    # A product and a sum are rounded one after the other, as PTX says, unless it says fma.
    "-ffp-contract=off",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # GCC 12 warns of std::string's own code.
    "-Wno-restrict",
)


class BuildFailed(Exception):
    """The machine could not be compiled; the message is the compiler's."""


def reason_against() -> str | None:
    """Why the machine cannot be built here, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the virtual GPU runs on x86-64, not on {platform.machine()}"
    if shutil.which(_compiler()[0]) is None:
        return "no C++ compiler was found (g++, or CXX)"
    return None


def library() -> Path:
    """The library, built again if it is not that of the sources. Raises BuildFailed."""
    compiler = _compiler()
    reason = reason_against()
    if reason is not None:
        raise BuildFailed(reason)
    built, record = DESTINATION / LIBRARY, DESTINATION / "sources.sha256"
    digest = _digest(compiler)
    if built.is_file() and _holds(record, digest):
        return built
    DESTINATION.mkdir(parents=True, exist_ok=True)
    try:
        with locked(DESTINATION / "lock"):
            if not (built.is_file() and _holds(record, digest)):
                _compile(compiler, built)
                record.write_text(digest, encoding="utf-8")
    except ImportError as error:
        raise BuildFailed("the virtual GPU is built on Unix alone, whose locks it takes") from error
    return built


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def _holds(record: Path, digest: str) -> bool:
    return record.is_file() and record.read_text(encoding="utf-8") == digest


def _digest(compiler: list[str]) -> str:
    digest = hashlib.sha256(repr((compiler, FLAGS, _processor())).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """What -march=native depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    return next((line for line in text.splitlines() if line.startswith("flags")), "")


def _compile(compiler: list[str], built: Path) -> None:
    objects = DESTINATION / "objects"
    objects.mkdir(exist_ok=True)
    fresh = objects / LIBRARY
    (objects / "build.ninja").write_text(_rules(compiler, objects, fresh), encoding="utf-8")
    command = [_ninja(), "-C", str(objects), "--quiet"]
    if "MAX_JOBS" in os.environ:
        command += ["-j", os.environ["MAX_JOBS"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildFailed(f"compiling the virtual GPU failed:\n{done.stdout}{done.stderr}")
    # In one step: processes that have the old library loaded keep it whole.
    copied = built.with_name(f".{built.name}.{os.getpid()}")
    shutil.copyfile(fresh, copied)
    copied.replace(built)


def _rules(compiler: list[str], objects: Path, fresh: Path) -> str:
    command = shlex.join([*compiler, *FLAGS])
    lines = [
        "rule compile",
        f"  command = {command} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {shlex.join(compiler)} -shared $in -o $out",
    ]
    made = []
    for source in sorted(SOURCES.glob("*.cpp")):
        made.append(objects / f"{source.stem}.o")
        lines.append(f"build {_escaped(made[-1])}: compile {_escaped(source)}")
    lines.append(f"build {_escaped(fresh)}: link {' '.join(map(_escaped, made))}")
    return "\n".join(lines) + "\n"


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _ninja() -> str:
    beside = Path(sysconfig.get_path("scripts"), "ninja")
    found = str(beside) if beside.is_file() else shutil.which("ninja")
    if found is None:
        raise BuildFailed("ninja was not found; pip install ninja")
    return found


def main() -> None:
    """Builds the library, or says why it cannot be: for `make`, which goes on without it."""
    against = reason_against()
    if against is None:
        library()
    else:
        print(f"without the virtual GPU: {against}")
