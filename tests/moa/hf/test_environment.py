"""Where a measurement was made: one description for every file of results."""

from importlib.metadata import version

import torch

from moa.hf.environment import cpu_name, environment


class Model(torch.nn.Linear):
    device, dtype = torch.device("cpu"), torch.bfloat16


def test_with_and_without_a_model() -> None:
    bare, whole = environment(), environment(Model(1, 1))
    assert bare["device"] == cpu_name()
    assert bare["threads"] == torch.get_num_threads()
    assert bare["torch"] == version("torch")
    assert whole == {**bare, "dtype": "bfloat16", "backend": whole["backend"]}
    assert environment(Model(1, 1), "reference")["backend"] == "reference"
