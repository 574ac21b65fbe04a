"""The arrows between the folders, and what each may be imported without."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTHING_OF_OURS: tuple[str, ...] = ()
CORE = ("moa.plans", "moa.kernels", "moa.hf")
MAY_IMPORT = {  # folder: prefixes of the modules of ours that it may import, its own besides
    "plans": NOTHING_OF_OURS,
    "kernels": ("moa.plans.span", "moa.plans.errors"),
    "profiler": CORE,
    "search": ("moa.plans", "moa.profiler.profile"),
    "moa/hf": ("moa.plans", "moa.kernels"),
    "moa/runtime": CORE,
    "moa/evaluation": (*CORE, "moa.runtime", "moa.profiler", "moa.search.study"),
    "moa/bench": (*CORE, "moa.runtime", "moa.search.spread"),
    "moa/report": ("moa.plans", "moa.search"),
    "moa/cli": ("moa",),
    "moa": (*CORE, "moa.profiler", "moa.search", "moa.runtime", "moa.evaluation", "moa.bench", "moa.report"),
}
ROOMS = sorted(MAY_IMPORT, key=len, reverse=True)
FILES = [
    (next(folder for folder in ROOMS if path.is_relative_to(ROOT / folder)), path)
    for top in ("plans", "kernels", "profiler", "search", "moa")
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
    name = ".".join(parts if parts[0] == "moa" else ("moa", *parts))
    return name.removesuffix(".__init__")


MODULES = {module_name(path) for _, path in FILES}


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def forbidden(folder: str, source: str, package: str, modules: set[str]) -> list[str]:
    own = module_name(ROOT / folder)
    ours = [name for name in imported(source, package, modules) if within(name, ("moa", *MAY_IMPORT))]
    rooms = [module_name(ROOT / room) for room in MAY_IMPORT if room != folder]
    mine = [name for name in ours if within(name, (own,)) and not within(name, tuple(r for r in rooms if r != "moa"))]
    return [name for name in ours if name not in mine and not within(name, MAY_IMPORT[folder])]


@pytest.mark.parametrize(("folder", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_arrows_between_folders(folder: str, path: Path) -> None:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert forbidden(folder, path.read_text(), package, MODULES) == []


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
