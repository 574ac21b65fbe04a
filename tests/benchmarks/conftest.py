"""Lends the benchmarks' tests the tiny models of tests/moa and the synthetic profiles of tests/search."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def lent(folder, fixture):
    """A fixture of another folder's conftest.py; test folders are no packages."""
    spec = spec_from_file_location(f"conftest_{folder}", Path(__file__).parents[1] / folder / "conftest.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, fixture)


fresh = lent("moa", "fresh")
make_profile = lent("search", "make_profile")
