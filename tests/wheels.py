"""Installs each wheel in `dist` into new environments and runs the tests there, on what was installed.

    python -m tests.wheels --python python3.10 --python python3.14 --torch "==2.10.*" --torch ">=2.10"

makes an environment for each wheel, interpreter and version of torch, with pip alone; the tests come from the archive
of the source in `dist`, whose packages give way to the installed ones. It needs Python's own modules alone, prints a
row for each environment, and exits with 1 where one failed. `make wheels` fills `dist`.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGES = {"memformer_kernels": ".", "memformer_lab": "python", "virtual_gpu": "python"}
"""What a wheel installs -> where it is in the source."""

TESTS = ("tests/memformer_kernels", "tests/memformer_lab", "tests/test_notebooks.py")
QUICK = ("-q", "-x", "-m", "not slow and not gpu", "-p", "no:xdist")

ASK = """
import json, platform, torch, memformer_kernels
backends = memformer_kernels.build_info().backends
print(json.dumps({
    "python": platform.python_version(),
    "torch": torch.__version__,
    "native": backends["cpu"].available,
    "reason": backends["cpu"].reason,
    "site": memformer_kernels.__path__[0],
}))
"""


@dataclass(frozen=True)
class Row:
    """One environment: what was in it, and how its tests ended."""

    wheel: str
    python: str
    torch: str
    native: bool
    passed: bool
    said: str
    seconds: float

    def __str__(self) -> str:
        kind, end = "native" if self.native else "pure Python", "passed" if self.passed else "FAILED"
        return f"| {self.wheel} | {self.python} | {self.torch} | {kind} | {end}: {self.said} |"


class Failed(Exception):
    """A step before the tests failed; the message is what it said last."""


def is_native(wheel: Path) -> bool:
    """Whether a wheel is one that brings native libraries."""
    return not wheel.stem.endswith("-any")


def found_in(folder: Path) -> tuple[list[Path], Path]:
    """The wheels and the archive of the source in a folder. Raises SystemExit where one is missing."""
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if not wheels or len(archives) != 1:
        raise SystemExit(
            f"{folder}: expected wheels and one .tar.gz, as `make wheels` leaves there, got "
            f"{len(wheels)} wheels and {len(archives)} archives"
        )
    return wheels, archives[0]


def unpack(archive: Path, folder: Path, site: Path) -> Path:
    """The source in `folder`, with the installed packages in `site` in the place of its own."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    for name, place in PACKAGES.items():
        own = source / place / name
        shutil.rmtree(own)
        own.symlink_to(site / name, target_is_directory=True)
    return source


def try_one(wheel: Path, archive: Path, python: str, torch: str, tests: tuple[str, ...], folder: Path) -> Row:
    """Installs one wheel into one new environment in `folder` and runs the tests there."""
    began = time.monotonic()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MEMFORMER_"))}
    environment["OMP_NUM_THREADS"] = "1"

    def run(*command: str | Path, cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    def step(*command: str | Path) -> str:
        done = run(*command)
        if done.returncode != 0:
            raise Failed((done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1])
        return done.stdout

    known = {"python": python, "torch": torch, "native": is_native(wheel)}
    try:
        step(python, "-m", "venv", folder / "venv")
        inside = folder / "venv" / "bin" / "python"
        step(inside, "-m", "pip", "install", "--quiet", f"torch{torch}", f"{wheel}[lab,test]")
        known |= json.loads(step(inside, "-c", ASK).splitlines()[-1])
        if known["native"] != is_native(wheel):
            raise Failed(f"backend cpu: {known['reason']}")
        source = unpack(archive, folder / "source", Path(known["site"]).parent)
        done = run(inside, "-m", "pytest", *(tests or (*QUICK, *TESTS)), cwd=source)
        passed, said = done.returncode == 0, ([*done.stdout.strip().splitlines(), "no output"][-1]).strip("= ")
        if not passed:
            print(done.stdout[-4000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    except (Failed, OSError) as failure:
        passed, said = False, str(failure)
    fields = {name: known[name] for name in ("python", "torch", "native")}
    return Row(wheel.name, **fields, passed=passed, said=said, seconds=round(time.monotonic() - began, 1))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dist"), help="what `make wheels` filled")
    parser.add_argument("--python", action="append", help="an interpreter; several times for several")
    parser.add_argument("--torch", action="append", help='a version of torch, such as "==2.10.*"; several times')
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help="arguments of pytest, to the end")
    chosen = parser.parse_args(arguments)
    wheels, archive = found_in(chosen.folder.resolve())
    rows = []
    for wheel, python, torch in itertools.product(wheels, chosen.python or [sys.executable], chosen.torch or [""]):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(try_one(wheel, archive, python, torch, tuple(chosen.tests), Path(folder)))
        print(rows[-1], flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
