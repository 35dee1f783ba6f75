"""Installing and importing where there is no POSIX: what Windows or macOS lack is hidden from Python."""

import subprocess
import sys
from pathlib import Path

import pytest

from native_build import cpu

ROOT = Path(__file__).parents[2]

HIDDEN = """
import os, signal, sys
for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog"):
    sys.modules[name] = None
for name in (
    "fork", "forkpty", "sched_getaffinity", "getuid", "geteuid", "killpg", "getpgid", "setsid", "mkfifo", "uname",
    "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "pidfd_open", "posix_spawn", "sysconf", "nice", "wait3", "wait4",
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGPIPE",
             "setitimer", "alarm", "pthread_sigmask", "sigwait"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_the_build_makes_a_pure_package_and_says_why(source: Path, system: str) -> None:
    code = (
        "import setuptools, setuptools.command.build, setuptools.command.bdist_wheel, runpy\n"
        f"{HIDDEN}"
        f"sys.platform = {system!r}\n"
        "sys.argv = ['setup.py', '-q', 'build_native', '--inplace']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"on Linux only, not on {system}" in done.stderr
    lib = source / "memformer_kernels" / "_lib"
    assert f"on Linux only, not on {system}" in (lib / cpu.RECORD).read_text()
    assert not (lib / cpu.LIBRARY).exists()


def test_every_module_imports_and_the_commands_have_their_help() -> None:
    """torch and what it needs come first: they have ways of their own on every system."""
    code = (
        "import pathlib, torch, importlib, rich, typer, pandas, matplotlib.pyplot, sklearn, statsmodels.api\n"
        "import torch._dynamo, torch.distributed, torch.multiprocessing\n"
        "try:\n    import triton, triton.language\nexcept ImportError:\n    pass\n"
        f"{HIDDEN}"
        "found = 0\n"
        "tops = {'memformer_kernels': '.', 'memformer_lab': 'python', 'virtual_gpu': 'python', 'native_build': '.'}\n"
        "for top, folder in tops.items():\n"
        "    for path in sorted(pathlib.Path(folder, top).rglob('*.py')):\n"
        "        name = '.'.join(path.relative_to(folder).with_suffix('').parts).removesuffix('.__init__')\n"
        "        compiles = name.startswith(('memformer_kernels.backends.triton', 'virtual_gpu.triton'))\n"
        "        if compiles and 'triton' not in sys.modules:\n"
        "            continue\n"
        "        if not name.endswith('__main__'):\n"
        "            importlib.import_module(name)\n"
        "            found += 1\n"
        "assert found > 50\n"
        "from memformer_lab.cli import main\n"
        "sys.argv = ['memformer-lab', '--help']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
