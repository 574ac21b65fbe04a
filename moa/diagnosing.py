"""Provide `moa.diagnose`: what is installed, which back-end runs here, whether it is right, what a plan would gain."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from os import PathLike

import torch

from moa.bench.selftest import deviation
from moa.hf.load import Given, load_config
from moa.kernels import backend as backends
from moa.kernels.dispatch import computed_by
from moa.kernels.registry import optional_packages, preferred
from moa.plans.config import longest_text
from moa.plans.errors import MoaError, Unsupported
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan

PACKAGES = ("moa-attention", "torch", "transformers", *optional_packages(), "numpy", "scipy", "optuna", "gguf")
LENGTHS = (1024, 4096, 16384, 65536)
CLOSE = 1e-4
"""Largest difference to the reference that a back-end may have in float32."""
WORTH = 0.95
"""A plan gains something where it keeps at most this part of attention's work, of the keys read, or of the memory."""
SPAN = tuple(2**power for power in range(7, 21))
"""Lengths that are looked at for gains: figures change slowly between them."""


@dataclass(frozen=True)
class Check:
    """The back-end that would run here.

    Attributes:
        name: Its name; None if none runs.
        device: Type of device, as torch calls it.
        why: Why none runs, or how to get a faster one; else empty.
        deviation: Its largest difference from the reference.
    """

    name: str | None
    device: str
    why: str = ""
    deviation: float = 0.0

    @property
    def right(self) -> bool:
        """Whether there is a back-end and it computes right."""
        return self.name is not None and self.deviation <= CLOSE


@dataclass(frozen=True)
class Kept:
    """What a plan keeps at one length, as shares of the dense model's.

    Attributes:
        length: The length, in tokens.
        prefill: Share of attention's work in a prefill.
        read: Share of the keys that a decode step reads.
        memory: Share of the bytes of keys and values.
    """

    length: int
    prefill: float
    read: float
    memory: float

    @classmethod
    def of(cls, plan: Plan, n: int) -> "Kept":
        """Return what `plan` keeps at `n` tokens."""
        return cls(n, plan.prefill_fraction(n), plan.read_density(n), plan.kv_bytes(n) / plan.model.dense_kv_bytes(n))

    @property
    def gains(self) -> bool:
        """Whether the plan saves enough to matter."""
        return min(self.prefill, self.read, self.memory) <= WORTH

    def told(self) -> str:
        """Return a line about what the plan gains."""
        gains = "gains" if self.gains else "gains nothing"
        return (
            f"at {self.length:,} tokens this plan {gains}: it keeps {self.prefill:.2f} of prefill's attention, "
            f"{self.read:.2f} of keys read per step, {self.memory:.2f} of KV memory"
        )


@dataclass(frozen=True)
class Machine:
    """Where this runs.

    Attributes:
        python: The version of Python, and the architecture.
        packages: Versions by name; None for what is not installed.
        cores: Number of cores of the CPU.
        threads: Number of threads that torch uses.
        cards: The description of each GPU by torch.
    """

    python: str
    packages: dict[str, str | None]
    cores: int | None
    threads: int
    cards: tuple[str, ...]


@dataclass(frozen=True)
class Prospect:
    """What a plan would do for a model.

    Attributes:
        model: Shape of the model.
        longest: The longest text that it takes, in tokens; None if its config does not say.
        plan: The plan; that of the dense model if none was named.
        lengths: Lengths at which to show what the plan costs.
        here: What the plan keeps at the length asked for.
        runs: Runs of consecutive lengths, each with whether the plan gains there.
        computed_by: In words what would compute its prefill and its decode here; None if no back-end runs.
    """

    model: ModelInfo
    longest: int | None
    plan: Plan
    lengths: tuple[int, ...]
    here: Kept | None
    runs: tuple[tuple[bool, tuple[int, ...]], ...]
    computed_by: tuple[str, str] | None

    def told(self) -> str:
        """Return a line about the lengths at which the plan gains something, up to the longest text of the model.

        A gain may end: a plan that drops the same number of tokens at every length drops almost nothing of a long text.
        """
        longest = self.runs[-1][1][-1]
        if not any(gains for gains, _ in self.runs):
            return f"this plan gains nothing up to {longest:,} tokens"
        before = "" if self.runs[0][0] else f"nothing at {self.runs[0][1][-1]:,} tokens and below; "
        return f"{before}this plan gains {' and '.join(_run(run, longest) for gains, run in self.runs if gains)}"


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        machine: Where this runs.
        backend: The back-end that would run.
        prospect: What the plan would do; None if no model was named.
    """

    machine: Machine
    backend: Check
    prospect: Prospect | None


def diagnose(
    model: Given | None = None, plan: Plan | str | PathLike[str] | None = None, length: int | None = None
) -> Diagnosis:
    """Return what is installed, which back-end runs here, whether it computes right, and what a plan would gain.

    Args:
        model: The model: its name, of which only the config is read, or what `moa.load_model` returned.
        plan: A plan for it, its file, or the name of a shipped one.
        length: Length of the user's texts, in tokens, at which to say what the plan gains.

    Raises:
        MoaError: A plan without a model, a length without a plan, or one over the model's maximum.
        ModelMismatch: A plan made for another model.
    """
    if (length is not None and plan is None) or (plan is not None and model is None):
        raise MoaError("--length says what a plan gains there: give a model and a plan")
    check = _check()
    prospect = None if model is None else _prospect(model, plan, length, check)
    machine = Machine(
        f"{platform.python_version()}, {platform.machine()}", {name: _version(name) for name in PACKAGES},
        os.cpu_count(), torch.get_num_threads(), tuple(map(_card, range(torch.cuda.device_count()))),
    )  # fmt: skip
    return Diagnosis(machine, check, prospect)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _card(index: int) -> str:
    card = torch.cuda.get_device_properties(index)
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute {card.major}.{card.minor}"


def _check() -> Check:
    """Return the back-end that would run, compared with the reference."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = backends.pick(device)
    try:
        backend = backends.load(name)
    except Unsupported as error:
        return Check(None, device, str(error))
    better = preferred(device)[0]
    slower = "" if better.name == name else f"decode is faster with {better.name}: {better.hint}"
    return Check(name, device, slower, deviation(backend, device))


def _prospect(model: Given, plan: Plan | str | PathLike[str] | None, length: int | None, check: Check) -> Prospect:
    config = model[0].config if isinstance(model, tuple) else load_config(model)
    info, longest = ModelInfo.of(config), longest_text(config)
    if length is not None and longest is not None and length > longest:
        raise MoaError(f"length {length} is over the model's maximum of {longest} tokens")
    chosen = Plan.dense(info) if plan is None else plan if isinstance(plan, Plan) else Plan.load(plan)
    chosen.check(info)
    shown = {longest or LENGTHS[-1]} if length is None else {length}
    shown |= {n for n in LENGTHS if longest is None or n <= longest}
    looked = sorted({n for n in (*SPAN, length, longest) if n is not None and (longest is None or n <= longest)})
    runs = tuple((gains, tuple(run)) for gains, run in groupby(looked, lambda n: Kept.of(chosen, n).gains))
    here = None if length is None else Kept.of(chosen, length)
    by = None
    if check.name is not None:
        by = computed_by(backends.load(check.name), chosen.moves_keys(), chosen.reads())
    return Prospect(info, longest, chosen, tuple(sorted(shown)), here, runs, by)


def _run(lengths: Sequence[int], longest: int) -> str:
    """Return consecutive lengths in words."""
    if lengths[-1] == longest:
        return f"at {lengths[0]:,} tokens and above"
    if len(lengths) == 1:
        return f"at {lengths[0]:,} tokens"
    return f"between {lengths[0]:,} and {lengths[-1]:,} tokens"
