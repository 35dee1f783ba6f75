from __future__ import annotations

import gzip
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, RidgeCV
from typer.testing import CliRunner, Result

from memformer_lab.cli import app
from memformer_lab.solvers.comparison import compare
from memformer_lab.tasks.table import read_table


def _frame(rows: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(rows, 3)), columns=["a", "b", "c"])
    frame["y"] = 2 * frame["a"] - frame["b"] + 0.1 * random.normal(size=rows)
    return frame


def _solve(frame: pd.DataFrame, folder: Path, *options: str, target: str = "y") -> Result:
    path = folder / "data.csv"
    frame.to_csv(path, index=False)
    figure = str(folder / "plot.png")
    return CliRunner().invoke(app, ["solve", str(path), "--target", target, "--figure", figure, *options])


def test_a_table_is_solved_beside_least_squares_and_ridge(tmp_path: Path) -> None:
    result = _solve(_frame(), tmp_path)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.output.splitlines() if line.split()}
    for name in ("Memformer", "OLS", "ridge"):
        assert float(lines[name][-1]) > 0.9
    assert float(lines["mean"][-1]) < 0.2
    picture = matplotlib.image.imread(tmp_path / "plot.png")
    assert picture[..., :3].std() > 0.02


def test_a_table_that_suits_another_method_is_said_to(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    wide = pd.DataFrame(random.normal(size=(60, 40)), columns=[f"x{index}" for index in range(40)])
    wide["y"] = wide.sum(axis=1) + 0.1 * random.normal(size=60)
    said = _solve(wide, tmp_path).stdout
    assert "Take ridge for this table: its error is 0." in said
    assert "with 48 rows it reads the 24 leading principal components of 40 columns" in said
    assert "for this table" not in _solve(_frame(), tmp_path).stdout
    clean = _frame(400)
    clean["y"] = clean["a"] + clean["b"] - clean["c"]
    said = _solve(clean, tmp_path).stdout
    assert "Take OLS for this table" in said
    assert "principal components" not in said


def test_scores_are_on_held_out_rows(tmp_path: Path) -> None:
    frame = _frame(30)
    frame["y"] = np.random.default_rng(1).normal(size=30)
    path = tmp_path / "noise.csv"
    frame.to_csv(path, index=False)
    comparison = compare(read_table(path, "y"), 5, 0)
    assert comparison["OLS"].r_squared < 0.1
    assert comparison["Memformer"].r_squared < 0.1


def _assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0], lines[0]


def test_missing_values_are_named(tmp_path: Path) -> None:
    frame = _frame()
    frame.loc[3, "b"] = None
    frame.loc[[3, 7], "y"] = None
    _assert_refused(_solve(frame, tmp_path), "2 of 40 rows have missing or infinite values", "columns 'b', 'y'")
    assert not (tmp_path / "plot.png").exists()


def test_text_columns_are_named(tmp_path: Path) -> None:
    frame = _frame()
    frame["town"] = "Paris"
    _assert_refused(_solve(frame, tmp_path), "columns 'town' hold text")


def test_too_few_rows_are_counted(tmp_path: Path) -> None:
    _assert_refused(_solve(_frame(4), tmp_path), "has 4 rows, expected at least 5 for 5 folds")
    assert _solve(_frame(5), tmp_path).exit_code == 0
    _assert_refused(_solve(_frame(8), tmp_path, "--folds", "9"), "has 8 rows, expected at least 9")


def test_other_bad_tables(tmp_path: Path) -> None:
    _assert_refused(_solve(_frame(), tmp_path, target="z"), "columns 'a', 'b', 'c', 'y', got 'z'")
    _assert_refused(_solve(_frame()[["y"]], tmp_path), "no column beside 'y'")
    (tmp_path / "empty.csv").write_text("")
    _assert_refused(CliRunner().invoke(app, ["solve", str(tmp_path / "empty.csv"), "--target", "y"]), "not a CSV table")
    _assert_refused(CliRunner().invoke(app, ["solve", str(tmp_path / "none.csv"), "--target", "y"]), "none.csv")


def test_an_earlier_figure_is_kept(tmp_path: Path) -> None:
    assert "the earlier one" not in _solve(_frame(), tmp_path).stdout
    before = (tmp_path / "plot.png").read_bytes()
    assert f"the earlier one is {tmp_path / 'plot.1.png'}" in _solve(_frame(), tmp_path).stdout.replace("\n", "")
    assert (tmp_path / "plot.1.png").read_bytes() == before


def _solve_text(text: str | bytes, folder: Path, *options: str, target: str = "y", name: str = "data.csv") -> Result:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ["solve", str(path), "--target", target, "--figure", str(folder / "plot.png"), *options]
    return CliRunner().invoke(app, words)


def _written(separator: str = ",", decimal: str = ".", names: tuple[str, ...] = ("a", "b", "y")) -> str:
    rows = [(f"{i / 8}", f"{(i * i) % 7}.25", f"{i / 2 - 1}") for i in range(20)]
    lines = [names, *(tuple(cell.replace(".", decimal) for cell in row) for row in rows)]
    return "".join(f"{separator.join(line)}\n" for line in lines)


@pytest.mark.parametrize(
    ("separator", "decimal"), [(",", "."), *((separator, decimal) for separator in ";\t|" for decimal in ".,")]
)
def test_separator_and_decimal_sign_are_found_or_given(separator: str, decimal: str, tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.csv", tmp_path / "data.csv"
    plain.write_text(_written())
    path.write_text(_written(separator, decimal))
    expected = read_table(plain, "y")
    for given in ({}, {"separator": separator}, {"separator": separator, "decimal": decimal}):
        found = read_table(path, "y", **given)
        assert (found.features, found.target) == (expected.features, expected.target)
        assert np.array_equal(found.x, expected.x)
        assert np.array_equal(found.y, expected.y)


@pytest.mark.parametrize(
    ("encoding", "options"),
    [
        ("utf-8", ()),
        ("utf-8-sig", ()),
        ("utf-16", ()),
        ("utf-32", ()),
        ("cp1252", ()),
        ("cp1252", ("--encoding", "cp1252")),
        ("cp1251", ("--encoding", "cp1251")),
        ("utf-16-le", ("--encoding", "utf-16-le")),
    ],
)
def test_the_encoding_is_found_or_given(encoding: str, options: tuple[str, ...], tmp_path: Path) -> None:
    target = "цена" if encoding == "cp1251" else "Größe"
    text = _written(names=("a", "b", target)).encode(encoding)
    result = _solve_text(text, tmp_path, *options, target=target)
    assert result.exit_code == 0, result.output
    assert f"{target} from 2 columns, 20 rows" in result.output


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_byte_order_mark_is_no_part_of_a_name(encoding: str, tmp_path: Path) -> None:
    """An encoding that is given may be one that leaves the mark where it is."""
    path = tmp_path / "data.csv"
    path.write_bytes(("\ufeff" + _written(names=("'y'", "a", "b"))).encode(encoding))
    assert read_table(path, "'y'", encoding=encoding).features == ("a", "b")


def test_options_of_the_file(tmp_path: Path) -> None:
    assert _solve_text(_written(":", ","), tmp_path, "--sep", ":", "--decimal", ",").exit_code == 0
    for tab in ("tab", "\\t", "\t"):
        assert _solve_text(_written("\t"), tmp_path, "--sep", tab).exit_code == 0
    _assert_refused(_solve_text(_written(), tmp_path, "--sep", "ab"), "sep: expected one character, got 'ab'")
    _assert_refused(_solve_text(_written(), tmp_path, "--decimal", "x"), "decimal: expected '.' or ','", "'x'")
    _assert_refused(_solve_text(_written(), tmp_path, "--sep", ",", "--decimal", ","), "decimal")
    _assert_refused(_solve_text(_written(), tmp_path, "--encoding", "utf-0"), "encoding: ", "utf-0")
    _assert_refused(_solve_text(_written(), tmp_path, "--encoding", "base64"), "encoding: ", "base64")
    _assert_refused(_solve_text(b"\xff\xfe\x00\x00\x81", tmp_path), "data.csv", "--encoding")
    _assert_refused(_solve_text(_written().encode("utf-16-le"), tmp_path), "data.csv", "--encoding")


def test_compressed_tables_are_read(tmp_path: Path) -> None:
    assert _solve_text(gzip.compress(_written().encode()), tmp_path, name="data.csv.gz").exit_code == 0
    _assert_refused(_solve_text(gzip.compress(_written().encode())[:40], tmp_path, name="cut.csv.gz"), "cut.csv.gz")
    _assert_refused(_solve_text("no such thing", tmp_path, name="bad.csv.gz"), "bad.csv.gz")


@pytest.mark.parametrize("separator", [",", ";"])
def test_rows_wider_than_the_header_are_refused(separator: str, tmp_path: Path) -> None:
    """Read as an index they would shift every column, and y would be another one."""
    lines = _written(separator).splitlines()
    wider = "\n".join([lines[0], *(f"{number}{separator}{line}" for number, line in enumerate(lines[1:]))])
    _assert_refused(_solve_text(wider, tmp_path), "line 2: 4 fields, expected 3", "'a', 'b', 'y'")
    one = "\n".join([*lines[:8], f"{lines[8]}{separator}1", *lines[9:]])
    _assert_refused(_solve_text(one, tmp_path), "line 9: 4 fields, expected 3")
    narrower = "\n".join([*lines[:8], separator.join(lines[8].split(separator)[:2]), *lines[9:]])
    _assert_refused(_solve_text(narrower, tmp_path), "line 9: 2 fields, expected 3")
    assert not (tmp_path / "plot.png").exists()


BLANKS = ["", "   ", "{0}{0}", " {0} {0} ", "{0}{0}{0}{0}{0}", '""{0}""{0}""', "{0}"]


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_around_a_table_are_no_part_of_it(separator: str, blank: str, end: str, tmp_path: Path) -> None:
    lines, line = _written(separator).splitlines(), blank.format(separator)
    paths = [tmp_path / name for name in ("plain.csv", "one.csv", "more.csv", "unended.csv", "before.csv")]
    texts = [lines, [*lines, line], [*lines, line, line, "", line], [*lines, line], [line, "", *lines]]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes((end.join(text) + ("" if path.stem == "unended" else end)).encode())
    expected, *others = (read_table(path, "y") for path in paths)
    assert len(expected.y) == 20
    for found in others:
        assert np.array_equal(found.x, expected.x)
        assert np.array_equal(found.y, expected.y)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_separator_is_found_behind_many_blank_rows(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f"{separator}{separator}\n" * 200 + _written(separator))
    assert read_table(path, "y").features == ("a", "b")


@pytest.mark.parametrize("blank", BLANKS)
def test_a_blank_line_between_rows_is_refused_by_its_number(blank: str, tmp_path: Path) -> None:
    lines = _written(";").splitlines()
    for place in (1, 8, 20):
        text = "\n".join([*lines[:place], blank.format(";"), *lines[place:], ""])
        _assert_refused(_solve_text(text, tmp_path), f"data.csv, line {place + 1}: it is blank")
    assert not (tmp_path / "plot.png").exists()


def test_a_table_of_blank_lines_is_empty(tmp_path: Path) -> None:
    for text in ("\n\n", " \n", ";;\n;;\n", "||\n", "\t\n", ' ; ;\n"";""\n', ";;\n" * 200):
        _assert_refused(_solve_text(text, tmp_path), "data.csv is not a CSV table: it is empty")


@pytest.mark.parametrize("names", [("y", "b", "y"), ("a", "a", "y"), ("a", "y ", "y"), ("", "", "y")])
def test_a_name_that_is_there_twice_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    """The second of two targets would be a feature that says it all."""
    _assert_refused(_solve_text(_written(names=names), tmp_path), "more than one column of the name '")


def test_a_comma_in_a_number_that_may_be_two_things_is_asked_about(tmp_path: Path) -> None:
    text = "a;y\n" + "".join(f"{i},{i}00;{i}.5\n" for i in range(1, 10))
    _assert_refused(_solve_text(text, tmp_path), "columns 'a' hold numbers like '1,100'", "--decimal")
    assert _solve_text(text.replace(".5", ",5"), tmp_path).exit_code == 0


def test_names_are_quoted_where_they_are_named(tmp_path: Path) -> None:
    names = ("a, b", "c ", "y")
    text = _written(";", names=names)
    _assert_refused(_solve_text(text, tmp_path, target="c"), "columns 'a, b', 'c ', 'y', got 'c'")
    _assert_refused(_solve_text(text.replace("0.125", ""), tmp_path), "in columns 'a, b':")
    _assert_refused(_solve_text(text.replace("0.125", "Paris"), tmp_path), "columns 'a, b' hold text")


@pytest.mark.parametrize("target", ["rate [/s]", "[bold]x", ":heart:", "price $_$ in $", "\\[x]", "é\u2028z", "y\ny"])
def test_a_column_s_name_is_never_read_as_markup(target: str, tmp_path: Path) -> None:
    frame = _frame().rename(columns={"y": target})
    result = _solve(frame, tmp_path, target=target)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{target} from 3 columns, 40 rows, 5-fold cross-validation\n")
    assert (tmp_path / "plot.png").exists()
    _assert_refused(_solve(frame, tmp_path, target="[/red]"), repr(target), "got '[/red]'")


@pytest.mark.parametrize("name", ["e[bold]x.png", "a [/s].png", ":heart:.png", "two  blanks.png"])
def test_a_path_is_never_read_as_markup(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    _frame().to_csv(path, index=False)
    result = CliRunner().invoke(app, ["solve", str(path), "--target", "y", "--figure", str(tmp_path / name)])
    assert result.exit_code == 0, result.output
    wrote = result.output.splitlines()[-1].removeprefix("Wrote ")
    assert wrote == str(tmp_path / name)
    assert Path(wrote).exists()
    missing = CliRunner().invoke(app, ["solve", str(tmp_path / name) + ".csv", "--target", "y"])
    _assert_refused(missing, repr(str(tmp_path / name) + ".csv"))


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("SVG", b"<?xml"), ("pdf", b"%PDF")])
def test_the_figure_is_of_the_format_that_its_name_says(suffix: str, start: bytes, tmp_path: Path) -> None:
    result = _solve(_frame(), tmp_path, "--figure", str(tmp_path / f"plot.{suffix}"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / f"plot.{suffix}").read_bytes().startswith(start)


def test_another_suffix_is_an_error_before_the_work(tmp_path: Path) -> None:
    for name in ("plot.jpg", "plot.txt"):
        result = _solve_text("", tmp_path, "--figure", name)
        _assert_refused(result, "figure: expected a name that ends in .png, .svg, .pdf", name)


def test_a_figure_that_cannot_be_written_loses_no_table(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    result = _solve(_frame(), tmp_path, "--figure", str(tmp_path / "folder.png"))
    _assert_refused(result, "folder.png")
    assert "Memformer" in result.stdout
    assert "Wrote" not in result.stdout


def test_a_peer_that_fails_never_fails_ours(tmp_path: Path) -> None:
    """Features near the end of the range overflow in ridge's scaler, which raises."""
    frame = _frame()
    frame[["a", "b", "c"]] *= 1e200
    result = _solve(frame, tmp_path)
    assert result.exit_code == 0, result.output
    assert "ridge failed: ValueError" in result.stdout
    assert result.stderr == ""
    assert (tmp_path / "plot.png").exists()


def test_both_peers_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    for peer in (LinearRegression, RidgeCV):
        monkeypatch.setattr(peer, "fit", fail)
    result = _solve(_frame(), tmp_path)
    assert result.exit_code == 0, result.output
    for name in ("OLS", "ridge"):
        assert f"{name} failed: LinAlgError: SVD did not converge" in result.stdout
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.split()}
    assert float(lines["Memformer"][-1]) > 0.9
