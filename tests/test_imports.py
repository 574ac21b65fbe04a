"""The arrows between the folders, and what each may be imported without."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MAY_IMPORT = {  # folder: prefixes of the modules of ours that it may import, its own besides
    folder: tuple(re.findall(r"`([\w.]+)`", last))
    for folder, last in re.findall(r"^\| \[(\S+)\]\(\.\./\1\) \|.*\| (.+) \|$", PAGE, re.M)
}
ROOMS = sorted(MAY_IMPORT, key=len, reverse=True)
FILES = [
    (next(folder for folder in ROOMS if path.is_relative_to(ROOT / folder)), path)
    for top in ("plans", "kernels", "profiler", "search", "moa", "serving/vllm/moa_vllm")
    for path in sorted((ROOT / top).rglob("*.py"))
    if path != ROOT / "moa" / "__main__.py"  # starts the command line
]


def imported(source: str, package: str, modules: set[str]) -> Iterator[str]:
    """Full name of every module that `source`, a file in `package`, imports anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else base for name in inner)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "serving":  # a distribution of its own: serving/vllm has the package moa_vllm
        parts = parts[2:]
    name = ".".join(parts if parts[0] in ("moa", "moa_vllm") else ("moa", *parts))
    return name.removesuffix(".__init__")


def package_of(path: Path) -> str:
    return module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]


MODULES = {module_name(path) for _, path in FILES}


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def forbidden(folder: str, source: str, package: str, modules: set[str]) -> list[str]:
    own = module_name(ROOT / folder)
    ours = [name for name in imported(source, package, modules) if within(name, ("moa", *MAY_IMPORT))]
    rooms = [module_name(ROOT / room) for room in MAY_IMPORT if room != folder]
    mine = [name for name in ours if within(name, (own,)) and not within(name, tuple(r for r in rooms if r != "moa"))]
    return [name for name in ours if name not in mine and not within(name, MAY_IMPORT[folder])]


IMPORTS = {  # those within functions and for types too: a reader goes round such a circle all the same
    name: {found for found in imported(path.read_text(), package_of(path), MODULES) if found in MODULES - {name}}
    for _, path in FILES
    for name in [module_name(path)]
}


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return names of which each imports the next, the last one the first; none if there is no such circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(IMPORTS) == []


def test_no_folders_import_each_other_in_a_circle() -> None:
    room = {module_name(path): folder for folder, path in FILES}
    between: dict[str, set[str]] = {folder: set() for folder in ROOMS}
    for name, found in IMPORTS.items():
        between[room[name]] |= {room[other] for other in found} - {room[name]}
    assert circle(between) == []


def test_circles_are_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert sorted(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == ["b", "b", "c"]


def test_the_page_lists_all_folders_and_only_what_they_import() -> None:
    inner = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "moa").glob("*/__init__.py")}
    assert set(MAY_IMPORT) == {"plans", "kernels", "profiler", "search", "moa", "serving/vllm/moa_vllm", *inner}
    for folder, prefixes in MAY_IMPORT.items():
        found = set().union(*(IMPORTS[module_name(path)] for of, path in FILES if of == folder))
        assert [p for p in prefixes if not any(within(name, (p,)) for name in found)] == [], folder


@pytest.mark.parametrize(("folder", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_arrows_between_folders(folder: str, path: Path) -> None:
    assert forbidden(folder, path.read_text(), package_of(path), MODULES) == []


@pytest.mark.parametrize(
    ("folder", "line", "refused"),
    [
        ("plans", "from moa.kernels import store", "moa.kernels.store"),
        ("plans", "import torch", None),
        ("plans", "from plans import span", "plans"),
        ("kernels", "from moa.plans import span", None),
        ("kernels", "from moa.plans.plan import Plan", "moa.plans.plan"),
        ("kernels", "from ..plans import plan", "moa.plans.plan"),
        ("kernels", "def f():\n    import moa.apply", "moa.apply"),
        ("search", "from moa.profiler.profile import Profile", None),
        ("search", "from moa.profiler import collect", "moa.profiler.collect"),
        ("moa/hf", "from moa.plans.plan import Plan", None),
        ("moa/hf", "from moa.hf import logits", None),
        ("moa/hf", "from moa.profiler import collect", "moa.profiler.collect"),
        ("moa/hf", "from moa.runtime.applied import apply", "moa.runtime.applied"),
        ("serving/vllm/moa_vllm", "from moa.kernels.sink_contents import SCORES", None),
        ("serving/vllm/moa_vllm", "from moa.runtime.applied import apply", "moa.runtime.applied"),
    ],
)
def test_the_check_itself(folder: str, line: str, refused: str | None) -> None:
    modules = {
        "moa.kernels.store", "moa.plans.span", "moa.plans.plan", "moa.profiler.collect", "moa.bench.timing"
    }  # fmt: skip
    assert forbidden(folder, line, f"moa.{folder}", modules) == ([refused] if refused else [])


def run_without(blocked: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter where importing any of `blocked` fails."""
    block = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, check=False)


WALK = """
import importlib, importlib.util, pkgutil
for root in {roots!r}:
    package = importlib.import_module(root)
    for found in pkgutil.walk_packages(package.__path__, root + "."):
        optional = [name for name in ("triton", "numba") if name in found.name.split(".")]
        if all(map(importlib.util.find_spec, optional)):
            importlib.import_module(found.name)
"""


@pytest.mark.parametrize(
    ("roots", "blocked"),
    [
        (["moa.plans"], ["torch", "transformers", "scipy", "optuna", "datasets", "typer", "safetensors"]),
        (["moa.kernels"], ["transformers", "pydantic", "scipy", "optuna", "datasets", "typer", "safetensors"]),
    ],
)
def test_light_packages(roots: list[str], blocked: list[str]) -> None:
    done = run_without(blocked, WALK.format(roots=roots))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import moa",
        "from moa.cli.main import app\napp(['--help'])",
        "from moa.cli.main import app\n"
        "for command in app.registered_commands:\n"
        "    assert app([command.name, '--help'], standalone_mode=False) == 0, command.name",
    ],
    ids=["import moa", "moa --help", "moa COMMAND --help"],
)
def test_no_torch_until_needed(code: str) -> None:
    done = run_without(["torch", "transformers", "scipy", "optuna", "datasets"], code)
    assert done.returncode == 0, done.stderr


def test_blocking_works() -> None:
    assert "ModuleNotFoundError" in run_without(["torch"], "import torch").stderr


def test_public_names_are_not_hidden_by_modules_of_the_same_name() -> None:
    code = "import moa\nfor name in moa.__all__:\n    for _ in range(2): assert callable(getattr(moa, name)), name"
    done = run_without([], code)
    assert done.returncode == 0, done.stderr
