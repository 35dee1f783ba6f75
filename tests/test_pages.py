"""What the pages say of the tree: code that runs; paths, commands, variables, limits and floors that are there."""

import re
from collections.abc import Iterator

import pytest

import memformer_kernels
from benchmarks.__main__ import app as benchmarks
from memformer_kernels.calls import limits
from memformer_kernels.nn import RULES
from native_build.cuda import OLDEST_NVCC
from native_build.tools import TARGET_TORCH
from tests.memformer_kernels.test_imports import FLOORS
from tests.pages import PAGES, ROOT, examples, one_line, rows, run, section, text_of

SUFFIXES = "py|md|h|cpp|cu|cuh|txt|json|toml|cff|png|in"
WRITTEN_BY_OTHERS = {"e19_name.py", "metrics.jsonl", "virtual-gpu.json", "report.html", "data.csv"}
OLD_WORDS = ("anew", "beside", "mend", "mended", "weigh", "weighs", "weighed")
NUMBERS = {7: "seven", 29: "twenty-nine"}
SET_BY_OTHERS = {"PYTHONPATH", "RANK", "WORLD_SIZE"}
"""Variables of Python and torchrun that tests read."""

RUN_ELSEWHERE = ("README.md", "docs/frameworks.md", "docs/lab.md", "docs/layer.md", "docs/virtual-gpu.md")
"""Pages whose code other tests run."""


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE and examples(page)])
def test_examples_run_as_pasted(page: str) -> None:
    for example in examples(page):
        assert run(example).strip()


def _paths(page: str) -> Iterator[str]:
    """What a page names that looks like a path: of code marks, with a slash or a known suffix, and of links."""
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for named in re.findall(r"`([\w./-]+?)(?:::[\w\[\]-]+)?`", text):
        if re.search(rf"\.(?:{SUFFIXES})$", named) or re.match(
            r"(?:csrc|python|tests|docs|benchmarks|memformer_\w+)/", named
        ):
            yield named
    for target in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", text):
        if not target.startswith("http"):
            yield target


def _exists(page: str, path: str) -> bool:
    """Below the root or the page's folder; a bare name of a file of code may be in any folder."""
    if any((folder / path).exists() for folder in (ROOT, (ROOT / page).parent, ROOT / "tests")):
        return True
    return "/" not in path and path.endswith((".py", ".h", ".json")) and any(ROOT.glob(f"[a-z]*/**/{path}"))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_link_is_in_the_tree(page: str) -> None:
    assert [path for path in _paths(page) if path not in WRITTEN_BY_OTHERS and not _exists(page, path)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_there(page: str) -> None:
    text = text_of(page)
    makefile = text_of("Makefile")
    for target in set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    known = {
        command.name or command.callback.__name__ for command in benchmarks.registered_commands if command.callback
    }
    for command in set(re.findall(r"python -m benchmarks ([a-z-]+)", text)):
        assert command in known, command


@pytest.mark.parametrize("page", PAGES)
def test_pages_keep_to_plain_words(page: str) -> None:
    assert re.findall(rf"(?i)\b(?:{'|'.join(OLD_WORDS)})\b", text_of(page)) == []


def test_the_table_of_variables_is_what_is_read() -> None:
    """All that Python, C++ and the Makefile read; and what the table names is named where it is read."""
    table = {
        name
        for cell in rows(section("docs/install.md", "## Environment variables"))
        for name in re.findall(r"[A-Z_]{3,}", cell)
    }
    folders = ("memformer_kernels", "python", "benchmarks", "native_build", "examples", "csrc", "tests")
    sources = {
        path: path.read_text(encoding="utf-8")
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh") and path.name != "test_pages.py"
    }
    sources[ROOT / "Makefile"] = text_of("Makefile")
    reading = r"""(?:environ(?:\.get|\.setdefault)?|getenv|wanted|unless_skipped)[\[(]\s*["']([A-Z_]+)["']"""
    read = {name for text in sources.values() for name in re.findall(reading, text)}
    read |= set(re.findall(r"^(?:export )?([A-Z_]+) \?=", sources[ROOT / "Makefile"], re.MULTILINE))
    assert read - SET_BY_OTHERS <= table
    everything = "\n".join(sources.values())
    assert [name for name in table if name not in everything] == []


def test_sizes_of_backends_are_the_limits() -> None:
    table = rows(section("docs/performance.md", "## Which backend serves what"))
    tiny, tokens = limits.TINY_WIDTH, limits.TINY_TOKENS
    assert table["cpu"][1] == (
        f"D up to {tiny} (d up to {tiny} where features stay), N up to {tokens} where a coefficient has a token axis; "
        f"where features stay and in `context_gram`, D up to {limits.WIDE_WIDTH} at any N; other networks in Gram "
        f"space, and `memformer_layer`, for D from {tiny + 1} to {limits.WIDE_MATRICES} at any N; `lfom_solve` up to "
        f"d = {limits.WIDE_WEIGHTS}; heads of `linear_attention` up to {limits.HEAD_WIDTH}"
    )
    assert f"N up to {tokens} on tokens, up to {limits.TINY_CONTEXT} in Gram space" in table["cuda"][1]
    assert (
        f"D up to {limits.WIDEST_MATRICES} (d up to {limits.TILE_WIDTH} where features stay) "
        f"and N up to {limits.LONGEST} on tokens" in (table["triton"][1])
    )
    short = rows(section("README.md", "## Backends"))
    assert f"D up to {tiny}, to {limits.WIDE_WIDTH} where features stay" in short["cpu"][0]
    assert short["cuda"][0].endswith(f"D up to {tiny}")
    assert f"D up to {limits.WIDEST_MATRICES} (d up to {limits.TILE_WIDTH} where features stay)" in short["triton"][1]
    assert f"heads up to {limits.HEAD_WIDTH}" in table["triton"][1]
    layer = section("docs/layer.md", "## What it costs")
    assert layer.count(f"heads up to {limits.HEAD_WIDTH} wide") == 2
    training = rows(text_of("docs/training.md"))
    assert (
        f"(matrices up to {limits.TRAINED_SIDE} by {limits.TRAINED_SIDE}, no token axis)" in training["on the CPU"][0]
    )
    assert f"response-only models, d <= {limits.TRAINED_FEATURES}, float32" in training["on a GPU"][0]


def test_the_page_on_installing_says_what_the_build_and_the_package_ask_for() -> None:
    said, project = one_line(text_of("docs/install.md")), text_of("pyproject.toml")
    (python,) = re.findall(r'^requires-python = ">=(.*)"$', project, re.MULTILINE)
    assert f"Python {python} or newer and torch {'.'.join(map(str, TARGET_TORCH))} or newer" in said
    assert f'"torch>={".".join(map(str, TARGET_TORCH))}"' in project
    assert f"with torch {re.findall(r'^torch==(.*)$', text_of('constraints.txt'), re.MULTILINE)[0]} and" in said
    assert f"an nvcc of CUDA {OLDEST_NVCC[0]} or newer" in said
    assert f"PyTorch's stable ABI, of torch {'.'.join(map(str, TARGET_TORCH))}" in said


def test_all_extents_of_tiny_kernels_are_in_places_that_the_page_names() -> None:
    told = section("docs/architecture.md", "## Where to change what").split("**Raise D")[1].split("**")[1]
    places = re.findall(r"`(csrc/[\w./]+)`", told)
    extent = re.compile(rf"UpTo<(?:{limits.TINY_WIDTH}|{limits.TINY_WIDTH + 1})>")
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    limited = [path for path in files if extent.search(text_of(path))]
    assert limited
    assert [path for path in limited if not path.startswith(tuple(places))] == []
    assert [place for place in places if "sizes.h" not in place and not any(x.startswith(place) for x in limited)] == []


def test_the_floors_of_the_page_are_those_that_imports_are_held_to() -> None:
    table = rows(text_of("docs/architecture.md"))
    said = [set(re.findall(r"\w+", cells[0])) for number, cells in table.items() if number.isdigit()]
    assert said == [floor for floor in FLOORS if floor != {"__init__"}]


def test_folders_of_the_page_are_those_of_the_tree() -> None:
    """The rooms of the native code, of the lab and of the benchmarks: none left out, none too many."""
    page = text_of("docs/architecture.md")
    for folder in ("csrc/cpu", "csrc/cuda"):
        (line,) = re.findall(rf"^\| `{folder}` \| (.*)$", page, re.MULTILINE)
        rooms = {path.name for path in (ROOT / folder).iterdir() if path.is_dir()}
        assert set(re.findall(r"`(\w+)`", line)) == rooms
    native_code = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    assert native_code == {folder for folder in rows(page) if folder.startswith("csrc/")}
    for folder, named in (
        ("benchmarks", "peers, measure, reports, gpu;"),
        ("python/memformer_lab", "tasks, solvers, runs, reports, profiling, spectrum, experiments;"),
    ):
        rooms = {path.name for path in (ROOT / folder).iterdir() if (path / "__init__.py").is_file()}
        assert named in one_line(page)
        assert set(re.findall(r"\w+", named)) == rooms


def test_the_tests_that_are_named_are_there() -> None:
    for page in PAGES:
        for file, test in re.findall(r"`([\w/]+\.py)::(\w+)", text_of(page)):
            path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / file
            assert f"def {test}(" in path.read_text(encoding="utf-8"), test


def test_citation_changelog_and_package_agree() -> None:
    project, citation = text_of("pyproject.toml"), text_of("CITATION.cff")
    assert citation.startswith("cff-version: 1.2.0\n")
    assert f"\nversion: {memformer_kernels.__version__}\n" in citation
    for pattern, line in (
        (r'^license = "(.*)"$', "\nlicense: {}\n"),
        (r'^authors = \[\{ name = "(.*)" \}\]$', "\n  - name: {}\n"),
    ):
        (value,) = re.findall(pattern, project, re.MULTILINE)
        assert line.format(value) in citation
    (keywords,) = re.findall(r"^keywords = \[(.*)\]$", project, re.MULTILINE)
    assert re.findall(r'"([^"]+)"', keywords) == re.findall(r"^  - ([\w -]+)$", citation, re.MULTILINE)
    assert f"\n## [{memformer_kernels.__version__}]" in text_of("CHANGELOG.md")
    assert f"for {NUMBERS[len(RULES)]} rules of memory" in one_line(text_of("CHANGELOG.md"))
    claims = len(list((ROOT / "docs" / "experiments").glob("*.json")))
    for page in ("README.md", "CHANGELOG.md", "docs/lab.md"):
        assert f"{NUMBERS[claims]} claims" in one_line(text_of(page))
    for name in re.findall(r"`((?:nn\.)?[A-Za-z]\w+)`", section("CHANGELOG.md", "### Added").split("- The lab:")[0]):
        holder = memformer_kernels.nn if name.startswith("nn.") else memformer_kernels
        if name not in ("torch", "cpu", "cuda", "triton"):
            assert hasattr(holder, name.removeprefix("nn.")), name


def test_hooks_before_a_commit_run_what_make_lint_does_by_pinned_tools() -> None:
    linted = re.search(r"^lint:.*\n((?:\t.*\n)+)", text_of("Makefile"), re.MULTILINE)
    hooks = re.findall(r"entry: \.venv/bin/([\w-]+(?: check| format)?)", text_of(".pre-commit-config.yaml"))
    assert linted
    assert sorted(hooks) == sorted(re.findall(r"\$\(BIN\)/([\w-]+(?: check| format)?)", linted[1]))
    pinned = re.findall(r"^([\w-]+)==", text_of("constraints.txt"), re.MULTILINE)
    assert {hook.split()[0] for hook in hooks} <= set(pinned)


def test_the_manifest_names_files_that_are_there() -> None:
    lines = re.findall(r"^(?:include|graft) (.*)$", text_of("MANIFEST.in"), re.MULTILINE)
    patterns = [name for line in lines for name in line.split()]
    assert {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "docs", "tests"} <= set(patterns)
    assert [pattern for pattern in patterns if not any(ROOT.glob(pattern))] == []
