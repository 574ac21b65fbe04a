"""The built distribution: holds everything, runs from an otherwise empty environment, declares what it imports."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("moa", "kernels", "plans", "profiler", "search")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*args: object, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, args)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made from the sdist: what a release would hold."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


def test_the_source_distribution_holds_the_plugin_of_vllm(wheel):
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    plugin = ROOT / "serving" / "vllm"
    wanted = {plugin / "pyproject.toml", plugin / "requirements.py", *(plugin / "moa_vllm").glob("*.py")}
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= names


def test_holds_every_source_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        prefix = "" if folder == "moa" else "moa/"
        wanted = [path for pattern in ("*.py", "*.yaml", "py.typed") for path in (ROOT / folder).rglob(pattern)]
        assert {prefix + path.relative_to(ROOT).as_posix() for path in wanted} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert {name.split("/")[0] for name in held} == {"moa", f"moa_attention-{PROJECT['version']}.dist-info"}


def test_runs_from_an_empty_environment(wheel, tmp_path):
    home = tmp_path / "empty"
    venv.create(home)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    # Dependencies come from here, not from an index. The path file is added last, so the wheel stands alone above.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    assert run(home / "bin" / "moa", "--version", cwd=tmp_path) == f"moa {PROJECT['version']}\n"
    assert "doctor" in run(home / "bin" / "moa", "--help", cwd=tmp_path)
    assert "back-end here" in run(home / "bin" / "moa", "doctor", cwd=tmp_path)
    places = run(
        python,
        "-c",
        "import moa, moa.kernels, moa.plans, moa.profiler, moa.search\n"
        "print(*(m.__file__ for m in (moa, moa.kernels, moa.plans, moa.profiler, moa.search)), sep='\\n')",
        cwd=tmp_path,
    )
    assert all(Path(line).is_relative_to(site) for line in places.splitlines())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def imports(path: Path, *, top_only: bool) -> set[str]:
    """First parts of the absolute imports of a file; `top_only`: those that run when it is imported."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"moa"}


@cache
def installed() -> dict[str, list[str]]:
    return dict(packages_distributions())


def distributions(names: set[str]) -> set[str]:
    owners = installed()
    return {normal(owner) for name in names for owner in owners.get(name, [name])}


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_are_declared(folder):
    """What runs on import is a plain dependency (triton and numba aside, in their folders); the rest an extra's."""
    core = declared(PROJECT["dependencies"])
    extras = {name: declared(listed) for name, listed in PROJECT["optional-dependencies"].items() if name != "dev"}
    for path in (ROOT / folder).rglob("*.py"):
        folders = path.relative_to(ROOT).parts
        always = core.union(
            *(extras[extra] for name, extra in {"triton": "gpu", "numba": "cpu"}.items() if name in folders)
        )
        assert distributions(imports(path, top_only=True)) <= always, path
        assert distributions(imports(path, top_only=False)) <= core.union(*extras.values()), path


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_pin_every_declared_dependency(name):
    files = (ROOT / name, ROOT / "constraints-common.txt")
    assert f"-c {files[1].name}" in files[0].read_text()
    lines = [line for file in files for line in file.read_text().splitlines()]
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    extras = PROJECT["optional-dependencies"].values()
    follows_torch = {"triton"}  # a CUDA build of torch names its own release, a CPU build none
    assert declared(PROJECT["dependencies"]).union(*map(declared, extras)) - pinned == follows_torch


def test_the_oldest_constraints_have_the_oldest_transformers():
    [least] = [line for line in PROJECT["dependencies"] if line.startswith("transformers>=")]
    oldest = least.removeprefix("transformers>=").split(",")[0]
    assert f"transformers=={oldest}.0" in (ROOT / "constraints-oldest.txt").read_text().splitlines()
