"""Define what a plan records of itself: the figures predicted for it, and where it came from."""

import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from moa.plans.model import Dtype
from moa.plans.schema import Frozen, Strict
from moa.plans.span import LONGEST


class Predicted(Strict):
    """The figures predicted for a plan, one per entry of `lengths`."""

    lengths: tuple[Annotated[int, Field(ge=1, le=LONGEST)], ...] = Field(min_length=1)
    """Tokens, prompt and generated, ascending; the last is the longest that the plan is meant for."""
    measured_to: int | None = Field(None, ge=1)
    """The longest length that calibration measured; figures at longer ones are extrapolated."""
    density: tuple[float, ...] | None = None
    """Share of the keys that is kept, mean over the groups with rules."""
    read_density: tuple[float, ...] | None = None
    """Part of all bytes that a decode step reads, summaries included; None where all that is kept is read."""
    kv_bytes: tuple[int, ...] | None = None
    """Bytes of the cache of one sequence, in `kv_dtype`."""
    kv_dtype: Dtype | None = None
    """Dtype of the cache that `kv_bytes` counts; None, as in files of older versions, is bfloat16."""
    harm: tuple[float, ...] | None = None
    """The search's objective, in the profile's unit."""
    kl: tuple[float, ...] | None = None
    """KL divergence from the dense model, nats per token."""
    decode_ms: tuple[float, ...] | None = None
    """Milliseconds of a decode step of one sequence, predicted from measured costs."""
    prefill_ms: tuple[float, ...] | None = None
    """Milliseconds of a prefill of one sequence, predicted from measured costs."""
    error: Annotated[dict[Literal["decode_ms", "prefill_ms"], float], AfterValidator(Frozen)] | None = None
    """Median error of the costs' fit, as a share of the measured milliseconds."""
    device: str | None = None
    """The device, threads, back-end and dtype that the milliseconds hold for."""

    @model_validator(mode="after")
    def _one_figure_per_length(self) -> Self:
        for field in ("density", "read_density", "kv_bytes", "harm", "kl", "decode_ms", "prefill_ms"):
            figures = getattr(self, field)
            if figures is not None and len(figures) != len(self.lengths):
                raise ValueError(f"{field} has {len(figures)} figures for {len(self.lengths)} lengths")
            if figures is not None and min(figures) < 0:
                raise ValueError(f"{field} must be 0 or more, found {min(figures):g}")
        return self

    @model_validator(mode="after")
    def _lengths_ascend(self) -> Self:
        if sorted(set(self.lengths)) != list(self.lengths):
            raise ValueError(f"lengths must ascend, found {list(self.lengths)}")
        if self.measured_to is not None and self.measured_to > self.lengths[-1]:
            raise ValueError(
                f"measured_to must be at most the longest length, {self.lengths[-1]}, found {self.measured_to}"
            )
        return self


class Provenance(Strict):
    """The origin of a plan. `note` holds whatever has no key of its own."""

    tool: str | None = None
    """The program that made the plan, or its version."""
    profile: str | None = None
    """The profile that was searched, by its digest."""
    calibration: str | None = None
    """The texts that the profile was measured on."""
    budget: str | None = None
    """What the plan had to keep to."""
    seed: int | None = None
    """Seed of all that was drawn at random."""
    date: datetime.date | None = None
    """The day on which it was made."""
    note: str | None = None
    """Anything else."""
