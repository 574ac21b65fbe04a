"""The notebook compiles, holds no outputs, and runs on the real model."""

import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
MODEL = '"../.model/SmolLM2-135M-Instruct"'
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_cells_compile_and_name_the_model_once():
    for source in CODE:
        compile(source, str(PATH), "exec")
    assert "".join(CODE).count(MODEL) == 1


def test_outputs_are_not_kept():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.full
def test_it_runs_on_the_real_model(real_model):
    nbformat = pytest.importorskip("nbformat", reason="nbformat, nbclient and ipykernel are not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.reads(PATH.read_text().replace(MODEL[1:-1], real_model.as_posix()), as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(PATH.parent)}})
    client.execute()
    said = "\n".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "saffron" in said
    assert "uniform like plan" in said
    assert "plan.yaml" in said
