"""The notebooks of docs, run as Jupyter runs them: cell after cell, what they print and draw kept with the cell.

`python -m tests.notebooks` runs them and writes what they showed.
"""

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import matplotlib.pyplot as plt
import torch

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

Notebook = dict[str, Any]
Output = dict[str, Any]


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code(notebook: Notebook) -> list[Notebook]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(notebook: Notebook) -> list[list[Output]]:
    """What each cell of code showed: what it printed, then what it drew."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng(), matplotlib.rc_context():
        plt.switch_backend("agg")
        return [_outputs("".join(cell["source"]), names) for cell in code(notebook)]


def _outputs(source: str, names: dict[str, Any]) -> list[Output]:
    printed, drawn = io.StringIO(), []

    def show() -> None:
        picture = io.BytesIO()
        plt.savefig(picture, format="png", dpi=80, metadata={"Software": None})
        drawn.append(base64.b64encode(picture.getvalue()).decode())
        plt.close()

    with contextlib.redirect_stdout(printed), mock.patch.object(plt, "show", show):
        exec(compile(source, "<cell>", "exec"), names)
    outputs: list[Output] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    outputs += [{"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}} for picture in drawn]
    return outputs


def main() -> None:
    for path in NOTEBOOKS:
        notebook = read(path)
        for count, (cell, outputs) in enumerate(zip(code(notebook), execute(notebook), strict=True), start=1):
            cell |= {"outputs": outputs, "execution_count": count}
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
