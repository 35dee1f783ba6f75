"""Writes docs/compatibility.md from the cells: python -m tests.compatibility.table"""

from pathlib import Path

from tests.compatibility.matrix import CELLS, COLUMNS, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

_HEAD = """# What works under what

Every cell is a test, `tests/compatibility/test_cells.py::test_cell[column-row]`, and this page is written from them by
`python -m tests.compatibility.table`. Results and gradients are compared with those of a plain eager call in float64.

"""


def render() -> str:
    """The page."""
    notes: list[str] = []

    def said(row: str, column: str) -> str:
        cell = next(cell for cell in CELLS if (cell.row, cell.column) == (row, column))
        text = f"error: `{cell.error}`" if cell.error is not None else cell.note
        if text is None:
            return "yes"
        if text not in notes:
            notes.append(text)
        return f"{'error' if cell.error is not None else 'no'} ({notes.index(text) + 1})"

    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| `{row}` | " + " | ".join(said(row, column) for column in COLUMNS) + " |" for row in ROWS]
    meanings = [f"- {column}: {meaning}" for column, meaning in COLUMNS.items()]
    remarks = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return _HEAD + "\n".join([*lines, "", *remarks, "", "Where", "", *meanings, ""])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE}: {len(CELLS)} cells")
