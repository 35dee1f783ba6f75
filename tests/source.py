"""What the source consists of, wherever it lies: in a clone, or unpacked from an archive."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MADE = {"__pycache__", "_lib", "build", "dist", "results", ".venv", ".gpu-packages", "setup.cfg", "PKG-INFO"}
_CACHES = ("_cache", ".egg-info", ".hypothesis", ".benchmarks", ".source")


def files() -> list[str]:
    """Paths of all files: what git tracks, or without git what nothing has made here."""
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
        return [path for path in done.stdout.splitlines() if (ROOT / path).is_file()]
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in found if not any(_is_made(part, path) for part in path.parts)]


def _is_made(part: str, path: Path) -> bool:
    return part.endswith(_CACHES) or (part in _MADE and not str(path).startswith("benchmarks/results/"))
