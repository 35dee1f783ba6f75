"""A regression problem in a text file: encoding, separator and decimal sign are found where they are not given."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST_ROWS = 4
"""Rows that every fold must leave for fitting."""

SEPARATORS = (",", ";", "\t", "|")
"""What separators are looked for; any other character can be given."""

_DECIMALS = (".", ",")
_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_NUMBER = re.compile(r"\s*[-+]?[\d.,]*\d[\d.,]*(e[-+]?\d+)?\s*", re.IGNORECASE)
_THOUSAND = re.compile(r"\s*[-+]?\d{1,3},\d{3}\s*")
_LOOKED_AT = 100


def quoted(names: Iterable[object]) -> str:
    """Names from a file, in a sentence: a blank at the end or a comma in one of them is seen."""
    return ", ".join(repr(str(name)) for name in names)


def read_frame(
    path: Path, *, separator: str | None = None, decimal: str | None = None, encoding: str | None = None
) -> pd.DataFrame:
    """Read a table with a header line, every row as wide as that; columns that are no numbers come as text.

    Lines of blanks and separators alone, before the header or after the last row, are no part of it.

    Args:
        path: a file of text, or one that is compressed (.gz, .bz2, .xz).
        separator: one character; None: the one of `SEPARATORS` that cuts the first lines best.
        decimal: "." or ","; None: "," where that alone makes numbers of a column and it does not separate.
        encoding: None: what a byte order mark says, UTF-8, or else Windows-1252.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for a file that is no such table, a name that is there twice, or an argument that is none.
    """
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ValueError(f"sep: expected one character, got {separator!r}")
    if decimal is not None and (decimal not in _DECIMALS or decimal == separator):
        raise ValueError(f"decimal: expected '.' or ',', other than the separator, got {decimal!r}")
    text = _decode(path, encoding)
    try:
        sign = separator or max(SEPARATORS, key=lambda one: _fit(text, one))
        extent = _extent(text, sign)
        names = _check_rows(path, text, sign, extent)
        text = "".join(islice(io.StringIO(text, newline=""), *extent))
        if decimal is not None or sign == ",":
            return _parse(path, text, sign, decimal or ".", names)
        points, commas = (_parse(path, text, sign, one, names) for one in _DECIMALS)
    except (csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a CSV table: {error}") from error
    turned = [place for place, name in enumerate(text_columns(commas)) if not name]
    turned = [place for place in turned if text_columns(points)[place]]
    if not turned:
        return points
    cells = [str(cell) for place in turned for cell in points.iloc[:, place] if "," in str(cell)]
    if all(map(_THOUSAND.fullmatch, cells)):
        raise ValueError(
            f"{path}: columns {quoted(commas.columns[turned])} hold numbers like {cells[0]!r}, which is two things: "
            "give --decimal"
        )
    return commas


def text_columns(frame: pd.DataFrame) -> list[bool]:
    """For each column, whether it holds anything but numbers."""
    return [not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]


@dataclass(frozen=True)
class Problem:
    """Features x (n, d) by name, and the target y (n,)."""

    x: Array
    y: Array
    features: tuple[str, ...]
    target: str


def read_table(
    path: Path,
    target: str,
    folds: int = 5,
    *,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
) -> Problem:
    """Read a CSV file whose columns are all numbers. `separator`, `decimal` and `encoding` are those of `read_frame`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no table, a target that is not there, text columns, missing or infinite values,
            or too few rows or columns, each named.
    """
    frame = read_frame(path, separator=separator, decimal=decimal, encoding=encoding)
    if target not in frame.columns:
        raise ValueError(f"target: {path} has columns {quoted(frame.columns)}, got {target!r}")
    text = frame.columns[text_columns(frame)]
    if len(text):
        raise ValueError(
            f"{path}: columns {quoted(text)} hold text, expected numbers: leave them out or encode them as numbers"
        )
    values = frame.to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        rows = int(bad.any(1).sum())
        raise ValueError(
            f"{path}: {rows} of {len(values)} rows have missing or infinite values, in columns "
            f"{quoted(frame.columns[bad.any(0)])}: "
            "fill them in or leave those rows out"
        )
    features = tuple(str(name) for name in frame.columns if name != target)
    if not features:
        raise ValueError(f"{path} has no column beside {target!r}, expected at least one to predict it from")
    left = len(values) - -(-len(values) // folds)
    if len(values) < folds or left < LEAST_ROWS:
        least = max(folds, next(n for n in range(2, 100) if n - -(-n // folds) >= LEAST_ROWS))
        raise ValueError(f"{path} has {len(values)} rows, expected at least {least} for {folds} folds")
    place = list(frame.columns).index(target)
    return Problem(np.delete(values, place, axis=1), values[:, place], features, target)


def _decode(path: Path, encoding: str | None) -> str:
    data, suffix = path.read_bytes(), path.suffix.lower()
    if suffix in _UNPACK:
        try:
            data = _UNPACK[suffix](data)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole {suffix} file: {error}") from error
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    tried = [encoding] if encoding is not None else [marked] if marked else ["utf-8", "cp1252"]
    for name in tried:
        try:
            text = data.decode(name)
        except UnicodeDecodeError as error:
            fault = str(error)
        except LookupError as error:
            raise ValueError(f"encoding: {error}, e.g. utf-8, cp1252 or utf-16") from error
        else:
            if "\0" not in text:
                return text.removeprefix("\ufeff")  # a mark that the encoding leaves in is no part of a name
            fault = f"a zero character at {text.index(chr(0))}, read as {name}"
    raise ValueError(f"{path} is not a CSV table: {fault}; give its --encoding")


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """All rows, each with the number of the line it ends on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    return ((reader.line_num, row) for row in reader)


def _holds(row: list[str]) -> bool:
    """Whether there is anything between the separators: spreadsheets write rows of nothing else."""
    return any(map(str.strip, row))


def _extent(text: str, separator: str) -> tuple[int, int]:
    """How many lines are before the first row that holds anything, and up to the end of the last."""
    begin = end = before = 0
    for line, row in _rows(text, separator):
        if _holds(row):
            begin, end = begin if end else before, line
        before = line
    return begin, end


def _fit(text: str, separator: str) -> tuple[bool, bool, float, int]:
    """How well a separator cuts the first lines: into several fields, as many in each, of numbers, of many."""
    held = (row for _, row in _rows(text, separator) if _holds(row))
    try:
        first = list(islice(held, _LOOKED_AT))
    except csv.Error:
        return False, False, 0.0, 0
    if not first:  # there is nothing but this separator, which no other one sees
        return True, True, math.inf, 0
    header, *rows = first
    several, cells = len(header) > 1, [cell for row in rows for cell in row]
    numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in cells) / max(1, len(cells))
    return several and all(len(row) == len(header) for row in rows), several, numbers, len(header)


def _check_rows(path: Path, text: str, separator: str, extent: tuple[int, int]) -> list[str]:
    """The header's names; every row must be as wide, since a wider one would shift the columns."""
    begin, end = extent
    rows = ((line, row) for line, row in _rows(text, separator) if begin < line <= end)
    _, header = next(rows, (0, []))
    if not header:
        raise ValueError(f"{path} is not a CSV table: it is empty")
    twice = [name for name, count in Counter(name.strip() for name in header).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has more than one column of the name {quoted(twice)}, expected every name once")
    for line, row in rows:
        if not _holds(row):
            raise ValueError(f"{path}, line {line}: it is blank, expected no blank line before the last row")
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} fields, expected {len(header)} as in the header "
                f"{quoted(header)}, cut at {separator!r}"
            )
    return header


def _parse(path: Path, text: str, separator: str, decimal: str, names: list[str]) -> pd.DataFrame:
    frame = pd.read_csv(
        io.StringIO(text), sep=separator, decimal=decimal, index_col=False, skipinitialspace=True, low_memory=False
    )
    if len(frame.columns) != len(names):
        raise ValueError(f"{path} is not a CSV table: its quotes leave {len(frame.columns)} of {len(names)} columns")
    frame.columns = pd.Index(names)
    return frame
