"""Digests of sources: every file of theirs counts, and nothing else."""

from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import SOURCES
from benchmarks.measure import sources


def test_a_digest_sees_every_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    made = [sources.digest(*SOURCES)]
    for name, text in (("csrc/core/a.h", "x"), ("csrc/core/a.h", "y"), ("csrc/core/b.h", "y"), ("tests/a.py", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        made.append(sources.digest(*SOURCES))
    (tmp_path / "tests" / "a.json").write_text("no source")
    assert len(set(made)) == 5
    assert sources.digest(*SOURCES) == made[-1]


def test_each_backend_has_the_digest_of_its_own_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folders in sources.KERNELS.values():
        assert all(any((sources.ROOT / folder).rglob("*.*")) for folder in folders)
    monkeypatch.setattr(sources, "ROOT", tmp_path)

    def digests() -> list[str]:
        sources.of_kernels.cache_clear()
        return [sources.of_kernels(backend) for backend in ("cuda", "triton")]

    try:
        before = digests()
        for number, name in enumerate(("csrc/cuda/kernels/a.cu", "memformer_kernels/backends/triton/a.py")):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text("changed")
            after = digests()
            assert [old != new for old, new in zip(before, after, strict=True)] == [number == 0, number == 1]
            before = after
        (tmp_path / "csrc" / "cpu").mkdir()
        (tmp_path / "csrc" / "cpu" / "a.cpp").write_text("no GPU's")
        assert digests() == before
    finally:
        sources.of_kernels.cache_clear()
