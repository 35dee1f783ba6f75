"""The pages that people read, as their tests look at them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    return text_of(page).split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]


def one_line(text: str) -> str:
    """A text without its line breaks, so that a sentence can be looked for."""
    return " ".join(text.split())


def rows(text: str) -> dict[str, list[str]]:
    """The tables of a text but for their heads: first cell -> the other cells, without markup."""
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip(" *`") for cell in row] for row in found]
    rules = [place for place, row in enumerate(cells) if not set("".join(row)) - {"-"}]
    return {row[0]: row[1:] for place, row in enumerate(cells) if place not in rules and place + 1 not in rules}


def examples(page: str) -> list[str]:
    """The blocks of Python code of a page."""
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


def run(code: str, folder: Path | None = None) -> str:
    """What a new interpreter prints that runs pasted code in a folder, by default this one.

    Raises AssertionError with its errors where it fails.
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout
