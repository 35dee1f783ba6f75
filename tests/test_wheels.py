"""What is released: how wheels are made and tried, and what the workflow of continuous integration runs."""

import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from tests import wheels
from tests.pages import ROOT, section, text_of

MAKEFILE = text_of("Makefile")


def _workflow() -> dict[str, dict[str, object]]:
    jobs = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"]
    assert isinstance(jobs, dict)
    return jobs


def _commands(job: dict[str, object]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflow_runs_what_ci_runs_and_other_targets_of_make() -> None:
    jobs = _workflow()
    assert _commands(jobs["ci"]) == ["bash .ci/run"]
    commands = [command for name, job in jobs.items() if name != "ci" for command in _commands(job)]
    targets = {re.match(r"make ([\w-]+)", command)[1] for command in commands}
    assert targets == {"docs", "lint", "tests", "wheels", "test-wheels"}
    for target in targets | set(re.findall(r"^make ([\w-]+)$", text_of(".ci/run"), re.MULTILINE)):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_the_workflow_tests_the_versions_that_the_package_names() -> None:
    project = text_of("pyproject.toml")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', project)
    (python,) = re.findall(r'^requires-python = ">=(.*)"$', project, re.MULTILINE)
    assert named[0] == python
    for job in ("tests", "wheel-tests"):
        matrix = _workflow()[job]["strategy"]["matrix"]
        assert matrix == {"python": named, "torch": [f"=={oldest}.*", f">={oldest}"]}


def test_another_torch_is_a_constraint_in_place_of_the_pin(tmp_path: Path) -> None:
    command = ["make", "-n", "-C", str(ROOT), f"VENV={tmp_path}", "TORCH===2.10.*", "tests"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        if line.startswith(("sed ", "echo 'torch")):
            subprocess.run(line, shell=True, cwd=ROOT, check=True)
    made = (tmp_path / "constraints.txt").read_text().splitlines()
    assert f"--constraint {tmp_path}/constraints.txt" in said
    assert [line for line in made if line.startswith(("torch", "triton"))] == ["torch==2.10.*"]
    assert "ruff==" in "".join(made)


def test_wheels_are_made_of_the_archive_one_with_native_libraries_and_one_without(tmp_path: Path) -> None:
    command = ["make", "-n", "-C", str(ROOT), f"VENV={tmp_path}", "wheels"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    native, pure = (line for line in lines if " pip wheel " in line)
    assert native.startswith("MEMFORMER_FORCE_NATIVE=1 ")
    assert native.endswith("--wheel-dir build/wheels dist/*.tar.gz")
    assert pure.startswith("MEMFORMER_SKIP_NATIVE=1 ")
    assert pure.endswith("--wheel-dir dist dist/*.tar.gz")
    (repair,) = (line for line in lines if "auditwheel repair" in line)
    assert "--exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheels/*.whl" in repair
    assert "wheels: export TORCH_CUDA_ARCH_LIST :=\n" in MAKEFILE


def test_the_recipe_of_a_release_names_its_commands() -> None:
    recipe = section("CONTRIBUTING.md", "## Release")
    for command in ("make docs", "make test-all", "make wheels", "make test-wheels", "twine upload"):
        assert command in recipe, command


def test_pictures_and_links_of_the_readme_are_absolute_once_there_is_a_repository() -> None:
    """An index of packages shows the README without the tree around it."""
    urls = dict(
        re.findall(r'^(\w+) = "(https.*)"$', text_of("pyproject.toml").split("[project.urls]")[1], re.MULTILINE)
    )
    assert urls["Paper"] in text_of("README.md")
    if "Repository" in urls:
        relative = [target for target in re.findall(r"\]\(([^)#]+)", text_of("README.md")) if ":" not in target]
        assert relative == []


def test_installed_packages_take_the_place_of_the_sources(tmp_path: Path) -> None:
    source, site = tmp_path / "memformer_kernels-1", tmp_path / "site"
    for name, place in wheels.PACKAGES.items():
        for folder, text in ((source / place / name, "source"), (site / name, "installed")):
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(text)
    (source / "tests").mkdir()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        packed.add(source, source.name)
    unpacked = wheels.unpack(tmp_path / "a.tar.gz", tmp_path / "unpacked", site)
    assert (unpacked / "tests").is_dir()
    for name, place in wheels.PACKAGES.items():
        assert (unpacked / place / name / "__init__.py").read_text() == "installed"
    assert (site / "memformer_kernels" / "__init__.py").is_file()


def test_a_folder_without_wheels_or_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected wheels and one \.tar\.gz"):
        wheels.found_in(tmp_path)


def test_an_environment_that_cannot_be_made_is_a_failed_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "memformer_kernels-1-py3-none-any.whl").touch()
    (tmp_path / "memformer_kernels-1.tar.gz").touch()
    record = tmp_path / "rows.json"
    assert wheels.main([str(tmp_path), "--python", str(tmp_path / "no-python"), "--json", str(record)]) == 1
    said = capsys.readouterr().out
    assert "| pure Python | FAILED: " in said
    assert "0 passed, 1 failed" in said
    assert '"passed": false' in record.read_text()


def test_the_tag_of_a_wheel_says_what_is_in_it() -> None:
    assert wheels.is_native(Path("memformer_kernels-0.1.0-py3-none-manylinux_2_28_x86_64.whl"))
    assert not wheels.is_native(Path("memformer_kernels-0.1.0-py3-none-any.whl"))


def test_what_is_tried_on_wheels_is_in_the_tree() -> None:
    assert [path for path in wheels.TESTS if not (ROOT / path).exists()] == []
