import os
from pathlib import Path

import pytest
from hypothesis import settings

# No example may fail for being slow: the machine's load is not the code's fault.
settings.register_profile("default", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile("default")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, for tests marked `full`; MOA_TEST_MODEL names another place."""
    here = Path(__file__).parents[1]
    folder = here / os.environ.get("MOA_TEST_MODEL", ".model/SmolLM2-135M-Instruct")
    assert (folder / "config.json").is_file(), f"{folder} is missing: python examples/demo_model.py {folder}"
    return folder
