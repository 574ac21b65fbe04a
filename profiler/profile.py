"""Define the profile: what the profiler measured, as one safetensors file.

Tensors `cut.<source>.<length>` are float32 [variants, layers, groups, rows, edges]; a variant is a pattern and a sink
size, layers are the model's ruled layers in order, rows and edges bins of max(64, length/128) tokens. An entry is the
estimator's effect, summed over the bin's rows and over all samples, when the first key kept besides the sink is at the
edge. The tensor `retrieval`, where measured, is float32 [layers, groups]: the copy score of `moa.profiler.retrieval`.
Tensors `read.<source>.<length>`, where measured, are those of `moa.profiler.read_tables`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moa.plans.errors import ProfileError
from moa.plans.model import DTYPES, Dtype, ModelInfo
from moa.plans.patterns import Variant
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.profiler.header import FORMAT, read_header
from moa.profiler.read_tables import ReadTables
from moa.profiler.sealed import seal, unseal

Cut = tuple[str, int]
"""A kind of calibration text and a length in tokens."""


@dataclass(frozen=True)
class Profile:
    """The measured harm of every cut.

    Attributes:
        model: The model's fingerprint.
        variants: The variants measured, which are the tables' first axis: patterns and sizes of sinks, tokens.
        cuts: Table per (source, length): float32 [variants, layers, groups, rows, edges], summed over samples.
        tokens: Response tokens T per (source, length), over all samples.
        samples: Samples per (source, length).
        meta: Labels, losses, seed and versions, for readers.
        estimators: Estimator per source; `fisher` where not named.
        retrieval: Copy score of every group, 0 to 1: float32 [layers, groups]; None where not measured.
        reads: Harm of reading little of what is kept; None where not measured.
        retrieval_tokens: Answer tokens that `retrieval` was measured on, over all samples.
    """

    model: ModelInfo
    variants: tuple[Variant, ...]
    cuts: Mapping[Cut, npt.NDArray[np.float32]]
    tokens: Mapping[Cut, int]
    samples: Mapping[Cut, int]
    meta: Mapping[str, Any] = field(default_factory=dict)
    estimators: Mapping[str, str] = field(default_factory=dict)
    retrieval: npt.NDArray[np.float32] | None = None
    retrieval_tokens: int = 0
    reads: ReadTables | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Kinds of calibration text, in order of measurement."""
        return tuple(dict.fromkeys(source for source, _ in self.cuts))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Profiled lengths, ascending."""
        return tuple(sorted({length for _, length in self.cuts}))

    @property
    def dtype(self) -> Dtype | None:
        """The dtype that the model was profiled in; None where the file does not say."""
        name = str(self.meta.get("dtype")).removeprefix("torch.")
        return next((known for known in DTYPES if known == name), None)

    @property
    def max_length(self) -> int | None:
        """The model's longest text, from any of the profiles that were added up to this one; None where none has it."""
        said = [part["max_length"] for part in (self.meta, *self.meta.get("added", ())) if part.get("max_length")]
        return min(said, default=None)

    def shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of a table at that length."""
        count = -(-length // bin_size(length))
        return len(self.variants), len(self.model.ruled_layers), self.model.kv_heads, count, count

    def estimator(self, source: str) -> str:
        """Return the estimator of `source`; `fisher` where the file does not say."""
        return self.estimators.get(source, "fisher")

    def only(self, patterns: Sequence[str]) -> "Profile":
        """Return the profile with only the variants of these patterns.

        Raises:
            ProfileError: A pattern was not profiled.
        """
        there = dict.fromkeys(name for name, _ in self.variants)
        unknown = [name for name in patterns if name not in there]
        if unknown or not patterns:
            raise ProfileError(f"patterns of this profile are {', '.join(there)}, found {', '.join(unknown) or 'none'}")
        kept = [i for i, (name, _) in enumerate(self.variants) if name in patterns]
        return dataclasses.replace(
            self, variants=tuple(self.variants[i] for i in kept),
            cuts={cut: table[kept] for cut, table in self.cuts.items()},
            reads=None if self.reads is None else self.reads.only(kept),
        )  # fmt: skip

    def check_plus(self, other: "Profile") -> None:
        """Refuse to add `other`, whose tables may still be empty.

        Raises:
            ProfileError: The profiles differ in model, sinks or estimators, or contain the same samples.
        """
        if differences := self.model.differences(other.model):
            raise ProfileError(f"profiles to add must be of one model; they differ in {', '.join(differences)}")
        if self.variants != other.variants:
            mine, its = (", ".join(f"{name} {size}" for name, size in p.variants) for p in (self, other))
            raise ProfileError(f"profiles to add must have the same sinks, found {mine} and {its}")
        if self.reads is not None and other.reads is not None:
            self.reads.check_plus(other.reads)
        for source in set(self.sources) & set(other.sources):
            mine, its = (p.estimator(source) for p in (self, other))
            if mine != its:
                raise ProfileError(f"profiles to add must have one estimator of {source}, found {mine} and {its}")
        mine, its = (p.meta.get("start", []) for p in (self, other))
        if mine != its:
            raise ProfileError(f"profiles to add must have samples that begin alike, found tokens {mine} and {its}")
        if "data" in set(self.sources) & set(other.sources) and not (self._knows_data() and other._knows_data()):
            raise ProfileError("profiles to add must both say which documents data is: measure the older one again")
        shared = {source for source, _ in set(self.cuts) & set(other.cuts)}
        twice = sorted(shared & {source for source, _ in self._drawn() & other._drawn()})
        if twice:
            raise ProfileError(
                f"profiles to add must have other samples, found the same of {', '.join(twice)} in both: "
                "measure with another --seed"
            )

    def _knows_data(self) -> bool:
        """Return whether every part names its documents; in parts that do not, prompts lack the chat template."""
        parts = (self.meta, *self.meta.get("added", ()))
        return all("data" in part.get("documents", ()) for part in parts if "data" in part.get("sources", ()))

    def _drawn(self) -> set[tuple[str, str]]:
        """Return each source with what its samples depend on, for every profile that was added up to this one."""
        return {
            (source, json.dumps([about.get("seed"), about.get("chat"), around(about)]))
            for about in (self.meta, *self.meta.get("added", ()))
            for source in about.get("sources", ())
        }

    def plus(self, other: "Profile") -> "Profile":
        """Return the sum of both, every sample counted once; copy scores are averaged over all answer tokens.

        Raises:
            ProfileError: As `check_plus`.
        """
        self.check_plus(other)
        both = [*self.cuts, *(cut for cut in other.cuts if cut not in self.cuts)]
        scored = [(p.retrieval, p.retrieval_tokens) for p in (self, other) if p.retrieval is not None]
        copyable = sum(tokens for _, tokens in scored)
        read = [p.reads for p in (self, other) if p.reads is not None]
        copied = [score.astype(np.float64) * tokens for score, tokens in scored]
        return Profile(
            self.model, self.variants,
            {cut: np.sum([p.cuts[cut] for p in (self, other) if cut in p.cuts], axis=0) for cut in both},
            {cut: self.tokens.get(cut, 0) + other.tokens.get(cut, 0) for cut in both},
            {cut: self.samples.get(cut, 0) + other.samples.get(cut, 0) for cut in both},
            {**self.meta, "added": [*self.meta.get("added", []), dict(other.meta)]},
            {**other.estimators, **self.estimators},
            (np.sum(copied, axis=0) / copyable).astype(np.float32) if scored else None, copyable,
            reduce(ReadTables.plus, read) if read else None,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the file in one step; a kill leaves the old file or the new one.

        Raises:
            ProfileError: The path cannot be written.
        """
        header: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model.model_dump(mode="json", exclude_none=True),
            "variants": [list(variant) for variant in self.variants],
            "cuts": [
                {"source": s, "length": n, "tokens": self.tokens[s, n], "samples": self.samples[s, n]}
                for s, n in self.cuts
            ],
            "meta": dict(self.meta),
            "estimators": dict(self.estimators),
        }
        tensors = {f"cut.{s}.{n}": np.ascontiguousarray(t) for (s, n), t in self.cuts.items()}
        if self.retrieval is not None:
            header["retrieval_tokens"] = self.retrieval_tokens
            tensors["retrieval"] = np.ascontiguousarray(self.retrieval)
        if self.reads is not None:
            header["reads"] = self.reads.header()
            tensors |= self.reads.tensors()
        try:
            replace(path, seal(tensors, header))
        except OSError as e:
            raise ProfileError(f"cannot write profile {path}: {e.strerror}") from e

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Return the profile in a file, after checking it.

        Raises:
            ProfileError: The file is missing, truncated or not a profile, or its tables do not fit its header.
        """
        if not Path(path).is_file():
            raise ProfileError(f"no profile at {path}; make one with `moa profile MODEL -o {path}`")
        if Path(path).suffix in (".yaml", ".yml"):
            raise ProfileError(
                f"{path} is named as a plan; give a profile (.safetensors), as the one it was found from"
            )
        tables, found = unseal(path, sealed=False)
        header = read_header(found, path)
        try:
            cuts = {(t.source, t.length): tables[f"cut.{t.source}.{t.length}"] for t in header.cuts}
            retrieval = tables["retrieval"] if header.retrieval_tokens else None
            reads = None if header.reads is None else ReadTables.of(header.reads, tables)
        except KeyError as e:
            raise ProfileError(f"{path} is damaged or truncated: it has no table {e}") from None
        tokens = {(t.source, t.length): t.tokens for t in header.cuts}
        samples = {(t.source, t.length): t.samples for t in header.cuts}
        profile = cls(
            header.model, header.variants, cuts, tokens, samples, header.meta, header.estimators,
            retrieval, header.retrieval_tokens, reads,
        )  # fmt: skip
        profile._check(path)
        return profile

    def _check(self, path: str | Path) -> None:
        """Refuse tables whose shape differs from the header's description, or whose values are impossible."""
        groups = len(self.model.ruled_layers), self.model.kv_heads
        for (source, length), table in self.cuts.items():
            _check_tensor(path, f"cut.{source}.{length}", table, self.shape(length))
            _check_finite(path, f"cut.{source}.{length}", table)
        if self.reads is not None:
            tensors = self.reads.tensors()
            for name, shape in self.reads.shape(len(self.variants), *groups).items():
                _check_tensor(path, name, tensors[name], shape)
                _check_finite(path, name, tensors[name])
        if self.retrieval is not None:
            _check_tensor(path, "retrieval", self.retrieval, groups)
            if not ((self.retrieval >= 0) & (self.retrieval <= 1)).all():
                raise ProfileError(f"{path}: retrieval holds values that are not from 0 to 1")


def _check_tensor(path: str | Path, name: str, found: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if found.shape != shape or found.dtype != np.float32:
        raise ProfileError(f"{path}: {name} must be float32 {list(shape)}, found {found.dtype} {list(found.shape)}")


def _check_finite(path: str | Path, name: str, found: npt.NDArray[Any]) -> None:
    if not np.isfinite(found).all():
        raise ProfileError(f"{path}: {name} holds values that are not finite")


def around(meta: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of the plan that a profile was measured around; None for the dense model.

    The document in `meta` also has a date and predictions, which change nothing about the samples.
    """
    said = meta.get("around")
    return None if said is None else Plan.from_dict(said).fingerprint()


def bin_size(length: int) -> int:
    """Return the tokens per row and edge bin: max(64, length / 128), rounded up to a multiple of 64."""
    return 64 * max(1, -(-length // (64 * 128)))


def digest(path: str | Path) -> str:
    """Return the digest `sha256:...` of a file, for provenance."""
    with open(path, "rb") as f:
        return f"sha256:{hashlib.file_digest(f, 'sha256').hexdigest()}"


def describe(path: str | Path, profile: Profile) -> dict[str, Any]:
    """Return what results record of the profile that they come from, as JSON types."""
    samples = {f"{source} {n}": count for (source, n), count in profile.samples.items()}
    return {"digest": digest(path), **profile.meta, "estimators": dict(profile.estimators), "samples": samples}
