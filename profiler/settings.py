"""Define what is measured, and list the samples that this takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from moa.hf.limits import check_length
from moa.plans.errors import MoaError, brief
from moa.plans.model import ModelInfo
from moa.plans.patterns import PATTERNS, Variant
from moa.plans.span import BLOCK
from moa.profiler.calibration import ESTIMATORS, LABELS, LOSSES, Labels, Loss, Source


def every(model: ModelInfo | None = None) -> tuple[Variant, ...]:
    """Return every pattern with a sink of one block, or every one that rules of the model may have."""
    latent = model is not None and model.latent
    return tuple((name, BLOCK) for name, rule in PATTERNS.items() if not (latent and rule.moves_keys()))


def no_reads(model: ModelInfo) -> str:
    """Return why rules of a model cannot read less than they keep; nothing where they can."""
    if model.latent:
        return "rules of layers that cache latent vectors read all that they keep"
    if model.head_size % 4:
        return f"reads need a head size that is a multiple of 4, found {model.head_size}"
    return ""


@dataclass(frozen=True)
class Settings:
    """The settings of a profile: what is measured, and how. A change starts a new profile.

    Attributes:
        lengths: Profiled lengths, tokens.
        samples: Samples per source and length.
        seed: Seed of texts and sampled labels.
        variants: The variants measured: patterns and sizes of sinks, tokens.
        estimator: Estimator of every source, a name in `ESTIMATORS`; None for each source's own.
        labels: Labels of every source, None for each source's own.
        loss: Loss of every source, None for each source's own.
        chat: Whether tasks are rendered with the tokenizer's chat template.
        retrieval_score: Whether copy scores are measured too, on the samples that ask for facts.
        reads: Whether the harm of reading little is measured too.
    """

    lengths: tuple[int, ...]
    samples: int = 8
    seed: int = 0
    variants: tuple[Variant, ...] = field(default_factory=every)
    estimator: str | None = None
    labels: Labels | None = None
    loss: Loss | None = None
    chat: bool = True
    retrieval_score: bool = False
    reads: bool = False

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what cannot be measured.

        Raises:
            MoaError: A setting cannot be measured; the error names the rule, the value and the valid choices.
        """
        if not self.lengths:
            raise MoaError("give at least one length")
        for length in self.lengths:
            check_length(model, length)
        if self.samples < 1:
            raise MoaError(f"samples must be at least 1, found {self.samples}")
        able = [name for name, _ in every(ModelInfo.of(model))]
        for name, size in self.variants:
            if name not in PATTERNS:
                raise MoaError(f"patterns to measure are {', '.join(PATTERNS)}, found {brief(name)}")
            if name not in able:
                raise MoaError(f"patterns of layers that cache latent vectors are {', '.join(able)}, found {name}")
            if size < BLOCK or size % BLOCK:
                raise MoaError(f"sinks of {name} must be positive multiples of {BLOCK}, found {size}")
            if size > max(self.lengths):
                raise MoaError(f"sinks of {name} must be at most the longest length, {max(self.lengths)}, found {size}")
        if not self.variants:
            raise MoaError(f"give at least one pattern to measure of {', '.join(PATTERNS)}")
        if len(set(self.variants)) < len(self.variants):
            raise MoaError(f"variants must differ, found {', '.join(f'{name}:{size}' for name, size in self.variants)}")
        if self.reads and self.estimator not in (None, "fisher", "effect"):
            raise MoaError(f"reads are measured by the estimators fisher and effect, found {brief(self.estimator)}")
        if self.reads and (why := no_reads(ModelInfo.of(model))):
            raise MoaError(f"{why}: leave --reads out")
        for name, known in (("estimator", ESTIMATORS), ("labels", LABELS), ("loss", LOSSES)):
            if (given := getattr(self, name)) is not None and given not in known:
                raise MoaError(f"{name} must be one of {', '.join(known)}, found {brief(given)}")


@dataclass(frozen=True)
class Task:
    """One sample to measure."""

    source: Source
    length: int
    index: int

    @property
    def key(self) -> str:
        """The file name of the sample's table."""
        return f"{self.source.name}.{self.length}.{self.index}"


def tasks(settings: Settings, sources: Sequence[Source]) -> list[Task]:
    """Return all samples, shortest length first, in the order in which they are summed.

    With the estimator `effect`, the default of tasks that ask for facts, only the shortest length is measured: which
    groups recall facts does not depend on the length. With `reads` it is measured at the longest too: at short ones,
    small shares are spent on what is always read. The loss `kl` is measured at every length, since a plan's
    divergence from the dense model does depend on it.
    """
    shortest, *longer = sorted(settings.lengths)
    every = [s for s in sources if "kl" in (s.loss, settings.loss) or (settings.estimator or s.estimator) != "effect"]
    at = {n: sources if settings.reads and n == longer[-1] else every for n in longer}
    pairs = [(s, n) for n, those in {shortest: sources, **at}.items() for s in those]
    return [Task(s, n, i) for s, n in pairs for i in range(settings.samples)]
