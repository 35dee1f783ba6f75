"""Output files through the one function that writes them, whatever kind of file a path names."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memformer_lab.runs.files import keep_earlier, naming, remove_temporaries, write_atomically

posix = pytest.mark.skipif(os.name == "nt", reason="needs the files of a POSIX system")


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "file", tmp_path / "other"
    write_atomically(path, b"one")
    other.write_bytes(b"one")
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode == other.stat().st_mode
    assert [one.name for one in path.parent.iterdir()] == ["file"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_replaced_file_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    before = path.stat().st_ino
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.stat().st_ino != before


@posix
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_links_are_followed(there: bool, relative: bool, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "file"
    link = tmp_path / "link"
    if there:
        place.parent.mkdir()
        place.write_bytes(b"old")
    link.symlink_to(Path("elsewhere", "file") if relative else place)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert place.read_bytes() == b"new"
    assert not place.is_symlink()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["elsewhere", "link"]


@posix
def test_a_link_to_itself_is_an_error_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OSError, match="link"):
        write_atomically(link, b"new")
    assert link.is_symlink()


@posix
def test_a_fifo_is_written_through(tmp_path: Path) -> None:
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    data = os.urandom(300_000)
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    write_atomically(fifo, data)
    reader.join()
    assert read == [data]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert [one.name for one in tmp_path.iterdir()] == ["fifo"]


@posix
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(os.devnull)
    for path in (Path(os.devnull), link):
        write_atomically(path, b"data")
        assert stat.S_ISCHR(path.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/dev/full") as raised:
        write_atomically("/dev/full", b"data")
    assert raised.value.errno == errno.ENOSPC


def test_a_failure_leaves_the_old_file_and_names_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="file") as raised:
        write_atomically(path, b"new")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=tmp_path.name):
        write_atomically(tmp_path, b"data")
    assert list(tmp_path.iterdir()) == []


@posix
def test_what_the_process_prints_into_is_written_through(tmp_path: Path) -> None:
    """A replacement would leave the printed text in a file that has no name any more."""
    words = "import sys; from memformer_lab.runs.files import write_atomically; "
    words += "print('before', flush=True); write_atomically(sys.argv[1], b'data\\n'); print('after')"
    place = tmp_path / "out"
    for name in (str(place), "/dev/stdout"):
        with place.open("wb") as out:
            subprocess.run([sys.executable, "-c", words, name], stdout=out, check=True)
        assert place.read_text() == "before\ndata\nafter\n"


def test_temporaries_of_killed_processes_are_removed_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    path = tmp_path / "place" / "a[b]*"
    for name in (".a[b]*.0123.tmp", ".ab.0123.tmp", ".a[b]*.txt"):
        (tmp_path / "place" / name).touch()
    link = tmp_path / "link"
    link.symlink_to(path)
    remove_temporaries(link)
    assert sorted(one.name for one in path.parent.iterdir()) == [".a[b]*.txt", ".ab.0123.tmp"]


def test_an_error_of_the_system_keeps_its_kind_and_gets_a_name() -> None:
    with pytest.raises(PermissionError, match="the file") as raised, naming("the file"):
        raise OSError(errno.EACCES, "no")
    assert raised.value.filename == "the file"


def test_what_was_there_is_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "plot.v2.png"
    assert keep_earlier(path) is None
    for number in (1, 2):
        path.write_bytes(bytes([number]))
        assert keep_earlier(path) == tmp_path / f"plot.v2.{number}.png"
        assert path.exists()
    assert (tmp_path / "plot.v2.1.png").read_bytes() == b"\x01"
    assert keep_earlier("/dev/null") is None
