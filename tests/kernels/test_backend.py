"""Back-ends by name, from one list."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from moa.kernels import backend, reference, registry
from moa.kernels.call import Append, Attend, Decode, Read
from moa.kernels.registry import ANYWHERE, BACKENDS, names, preferred
from moa.kernels.softmax import Softmax
from moa.kernels.spec import Spec
from moa.kernels.torch import operations
from moa.plans.errors import Unsupported

ROOT = Path(__file__).parents[2]
IDS = [spec.name for spec in BACKENDS]


def test_load_gives_the_named_one():
    assert backend.load("reference")[:4] == ("reference", reference.attend, reference.append, reference.decode)
    assert backend.load("torch").decode is operations.decode
    assert backend.load("reference").read is reference.read


@pytest.mark.parametrize("spec", BACKENDS, ids=IDS)
@pytest.mark.parametrize("operation", [Attend, Append, Decode, Read])
def test_each_has_the_operations_as_they_are_documented(spec, operation):
    """Argument for argument, with types and defaults."""
    if operation is Read and "read" not in spec.can:
        assert not hasattr(import_module(spec.module), "read")
        return
    ours = getattr(import_module(spec.module), operation.__name__.lower())
    wanted, found = inspect.signature(operation.__call__), inspect.signature(ours)
    assert list(found.parameters.values()) == list(wanted.parameters.values())[1:]  # but `self`
    assert found.return_annotation == wanted.return_annotation


def test_unknown_name_lists_the_choices():
    with pytest.raises(Unsupported, match=r"'flash'.*reference, torch, numba, triton"):
        backend.load("flash")
    assert names() == "reference, torch, numba, triton"


def test_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match=r"is for GPUs, none is visible: choose torch, or set TRITON_INTERPRET=1$"):
        backend.load("triton")
    with pytest.raises(Unsupported, match="none is visible: choose numba or torch, or set"):
        backend.load("triton", torch.device("cpu"))
    monkeypatch.setattr("moa.kernels.spec.find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="pip install"):
        backend.load("triton")


def test_a_device_that_a_back_end_is_not_for_is_refused_unless_it_is_emulated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Unsupported, match="triton is for GPUs, the model is on cpu: choose numba or torch"):
        backend.load("triton", torch.device("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.load("triton", torch.device("cpu")).name == "triton"


@pytest.fixture
def spare(monkeypatch):
    """A back-end for another type of device, with no emulation."""
    spec = Spec("spare", "moa.kernels.absent", can=("decode",), devices=("xpu",), title="XPU")
    monkeypatch.setattr(registry, "BACKENDS", (*BACKENDS, spec))
    return spec


def test_a_back_end_for_another_device_is_refused_by_its_own_words(spare, monkeypatch):
    """Its devices' title, no emulation that it lacks, and the choices that the device has."""
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(Unsupported, match=r"^back-end spare is for XPUs, none is visible: choose numba or torch$"):
        backend.load("spare", torch.device("cpu"))
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    with pytest.raises(Unsupported, match=r"^back-end spare is for XPUs, the model is on cpu: choose numba or torch$"):
        backend.load("spare", torch.device("cpu"))
    with pytest.raises(Unsupported, match=r"^back-end spare cannot be imported, choose torch: "):
        backend.load("spare", torch.device("xpu"))
    with pytest.raises(Unsupported, match=r"numba is for CPUs, the model is on xpu: choose spare or torch$"):
        backend.load("numba", torch.device("xpu"))


def test_what_is_not_installed_is_no_choice(monkeypatch):
    monkeypatch.setattr("moa.kernels.spec.find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"needs the triton package: pip install .*, or choose torch$"):
        backend.load("triton", torch.device("cpu"))


def test_no_other_file_picks_a_back_end_by_its_name():
    """Messages and calls outside the registry take names from it."""
    by_name = re.compile(rf"""(?:\bload\(|choose |back-end ){{1,2}}["']?({"|".join(IDS)})\b""")
    rooms = ("kernels", "moa", "plans", "profiler", "search")
    found = [path for room in rooms for path in (ROOT / room).rglob("*.py") if by_name.search(path.read_text())]
    assert not found


def test_pick_by_device():
    assert backend.pick("cuda:1") == "triton"
    assert backend.pick(torch.device("cpu")) == "numba"
    assert backend.pick("meta") == "torch"


def test_a_missing_package_lets_the_next_stand_in_only_where_the_back_end_is_optional(monkeypatch):
    monkeypatch.setattr("moa.kernels.spec.find_spec", lambda name: None)
    assert backend.pick("cpu") == "torch"
    assert backend.pick("cuda") == "triton"  # which `load` refuses


@pytest.mark.parametrize("spec", BACKENDS, ids=IDS)
def test_each_has_the_folder_the_devices_and_the_extra_that_it_names(spec):
    module = ROOT / (spec.module.removeprefix("moa.").replace(".", "/") + ".py")
    assert module.is_file()
    assert (module.parent / "influence.py").is_file() == ("influence" in spec.can) or spec.name == "reference"
    assert bool(spec.devices) == bool(spec.title)
    extra = re.search(r"\[(\w+)\]", spec.hint)
    assert bool(spec.packages) == bool(extra)
    listed = (ROOT / "pyproject.toml").read_text()
    for package in spec.packages:
        assert re.search(rf'^{extra[1]} = .*"{package}[>"]', listed, re.MULTILINE)
    if spec.name != "reference":
        assert f'"moa.kernels.{spec.name}"' in listed


def test_one_runs_everywhere():
    for device in ("cpu", "cuda", "meta", None):
        assert preferred(device)[-1] is ANYWHERE
    assert not ANYWHERE.packages


@pytest.mark.parametrize("spec", BACKENDS, ids=IDS)
def test_the_page_of_kernels_has_a_row_for_each(spec):
    """Its name, its devices, what it can do and how to get it are those of the list."""
    rows = [
        line for line in (ROOT / "docs" / "kernels.md").read_text().splitlines() if line.startswith(f"| `{spec.name}`")
    ]
    (row,) = rows
    _, _, devices, can, needs, _, _ = (cell.strip() for cell in row.split("|"))
    assert devices == (spec.title or "any")
    assert can == ", ".join(spec.can)
    assert needs == (f"`{spec.hint}`" if spec.hint else "")


@pytest.mark.parametrize("spec", [spec for spec in BACKENDS if spec.takes("cpu") and "graph" in spec.can])
def test_those_that_claim_graphs_compile_without_a_break(kit, spec):
    whole, scale = kit.text([70, 5], 4, 2, 8, 0), 0.3
    rules = kit.Rules(*torch.tensor([[64, 0], [64, 64], [0, 64]]).numpy())
    store = kit.store_of(whole, rules, [69, 4], fill=0)
    compiled = torch.compile(backend.load(spec.name).decode, backend="eager", fullgraph=True, dynamic=False)
    call = {**whole.new([69, 4], [70, 5]), "seen": rules.seen(70), "store": store, "softmax": Softmax(scale)}
    expected = torch.cat([x[-1:] for x in kit.oracle(whole, rules, scale)])
    torch.testing.assert_close(compiled(**call), expected, atol=1e-10, rtol=0)


def test_commands_name_every_back_end():
    from moa.cli.common import Backend

    (option,) = Backend.__metadata__
    assert names() in option.help
