"""The machine's library is built once, and again when a source changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from virtual_gpu import build

SOURCE = 'extern "C" int number() { return %d; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one source in place of the machine's."""
    folder = tmp_path / "machine"
    folder.mkdir()
    (folder / "number.cpp").write_text(SOURCE % 1)
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "DESTINATION", tmp_path / "_lib")
    return folder


def number(library: Path) -> int:
    """What the library's function returns, in a process of its own."""
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).number())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_a_changed_source_is_compiled_and_an_unchanged_one_is_not(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", "-fPIC"))
    assert number(build.library()) == 1
    made = build.library().stat().st_mtime_ns
    assert build.library().stat().st_mtime_ns == made
    (sources / "number.cpp").write_text(SOURCE % 2)
    assert number(build.library()) == 2


def test_a_compilers_message_is_kept(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", ("-O0", "-fPIC"))
    (sources / "number.cpp").write_text("nonsense")
    with pytest.raises(build.BuildFailed, match="nonsense"):
        build.library()


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "compiler" in (build.reason_against() or "")
    with pytest.raises(build.BuildFailed, match="compiler"):
        build.library()


def test_a_source_tree_keeps_its_library_and_an_installed_package_a_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert build.DESTINATION == build.FOLDER / "_lib"
    one, other = (build.destination(tmp_path / name / "virtual_gpu") for name in ("one", "other"))
    assert one.parents[1] == other.parents[1] == tmp_path / "caches"
    assert one != other
