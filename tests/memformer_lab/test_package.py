"""The lab's own names, and what importing it does."""

import subprocess
import sys

import pytest

import memformer_lab


@pytest.mark.parametrize("name", memformer_lab.__all__)
def test_a_public_name_is_found_when_it_is_used(name: str) -> None:
    assert getattr(memformer_lab, name).__name__ == name
    assert name in dir(memformer_lab)


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'memformer_lab' has no attribute 'Regressor'"):
        memformer_lab.Regressor  # noqa: B018


def test_importing_the_package_takes_no_time() -> None:
    """Its command says what Ctrl-C does before anything else is imported."""
    code = "import sys, memformer_lab.__main__; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "numpy", "typer", "rich", "memformer_kernels"} == set()


@pytest.mark.parametrize("package", ["typer", "rich", "matplotlib", "safetensors"])
def test_without_its_extra_the_command_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from memformer_lab.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: memformer-lab needs {package}: pip install 'memformer_kernels[lab]'\n"
