"""Tests of compiled Triton kernels, in a process that interprets none.

Whether kernels are interpreted is fixed when triton is imported, and without a GPU this process interprets them. A test
with the mark `compiled` is run by a second pytest, which lives as long as this one and says how each test went.
"""

import contextlib
import gc
import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import pytest

INTERPRETS = "TRITON_INTERPRET"


class _Reports:
    """A plugin that keeps what pytest reports, as data that can be sent."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self._config: pytest.Config | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert self._config is not None
        self.made.append(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))


class _Process:
    """The second pytest."""

    def __init__(self, root: str) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(theirs, root), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, test: str) -> list[dict[str, Any]]:
        """The reports of one test.

        Raises:
            EOFError: the process has ended with it.
        """
        try:
            self._ours.send(test)
            made: list[dict[str, Any]] = self._ours.recv()
        except BaseException:
            self.end()
            raise
        return made

    def end(self) -> None:
        self._process.kill()
        self._process.join()

    @property
    def lives(self) -> bool:
        return self._process.is_alive()


def _serve(connection: Connection, root: str) -> None:
    os.environ[INTERPRETS] = "0"
    os.chdir(root)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        contextlib.suppress(EOFError),
    ):
        while True:
            reports = _Reports()
            # pytest collects garbage several times as it ends: what earlier tests loaded need not be looked through.
            gc.freeze()
            pytest.main([connection.recv(), "--quiet"], plugins=[reports])
            connection.send(reports.made)


_process: _Process | None = None


def run_elsewhere(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a test of compiled kernels where kernels are compiled, if that is not here: `pytest_runtest_protocol`."""
    global _process
    if item.get_closest_marker("compiled") is None or os.environ.get(INTERPRETS) != "1":
        return None
    if _process is None or not _process.lives:
        _process = _Process(str(item.config.rootpath))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    try:
        sent = _process.run(item.nodeid)
        why = "" if sent else "the process that compiles kernels did not find this test"
    except (EOFError, OSError):
        sent, why = [], "the process that compiles kernels ended in this test"
    except pytest.fail.Exception as overrun:  # what pytest-timeout raises here, while the other process still works
        sent, why = [], str(overrun)
    reports = [item.config.hook.pytest_report_from_serializable(config=item.config, data=data) for data in sent]
    if why:
        reports.append(pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call"))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    # What the test before this one left set up for its neighbours ends here, as after a test of this process.
    item.session._setupstate.teardown_exact(nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
