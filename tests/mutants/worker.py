"""What `run.py` does in a process of its own: the tests of a copy of the tree, up to the first that fails."""

import os
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import Phase

WARM = ("pytest", "hypothesis", "torch", "torch._dynamo", "transformers", "transformers.models.llama.modeling_llama",
        "scipy.optimize", "optuna", "rich", "typer", "yaml")  # fmt: skip
"""What most tests import, and takes most of their time: loaded once, by the process that those of faults fork from."""


class Witness:
    """A pytest plugin that knows what went wrong first."""

    def __init__(self) -> None:
        self.saw: tuple[str, str] | None = None

    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector, call: Any, report: Any) -> None:
        """Keep the first test that failed, none where it could not even be collected, and the type of the error."""
        self.saw = self.saw or (node.nodeid if isinstance(node, pytest.Item) else "", call.excinfo.typename)


def test(answer: Any, folder: Path, tests: list[str], compiled: Path) -> None:
    """Run tests of the copy in `folder`; send (exit code of pytest, test that failed, type of its error).

    Args:
        answer: Where to send it.
        folder: Holds the copy in `tree`, and `path`, from which it is imported.
        tests: What pytest shall run.
        compiled: Where numba keeps code.
    """
    assert "moa" not in sys.modules
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder / "tree")
    os.environ |= {"NUMBA_CACHE_DIR": str(compiled), "PYTHONPATH": str(folder / "path")}
    sys.path.insert(0, str(folder / "path"))
    witness = Witness()
    phases = [Phase.explicit, Phase.generate]  # a case that fails is enough: the smallest is not looked for
    hypothesis.settings.register_profile("fault", deadline=None, phases=phases)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not full and not gpu"]
    options += ["--hypothesis-seed=0", "--hypothesis-profile=fault"]
    code = pytest.main([*options, *tests], plugins=[witness])
    files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "moa"]
    astray = [file for file in files if file and folder not in Path(file).parents]
    assert not astray, f"imported from elsewhere than the copy: {astray}"
    answer.send((int(code), *(witness.saw or ("", ""))))
