"""Define the plan: one rule per KV head of a model, what the rules cost, and the ways to make a plan."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moa.plans import file, hub, makers, reading
from moa.plans.content import Content
from moa.plans.document import from_document, to_document
from moa.plans.errors import ModelMismatch, PlanError
from moa.plans.importers import import_rules
from moa.plans.model import Dtype, ModelInfo, batch_lengths, whole
from moa.plans.patterns import FULL, Rule, reach
from moa.plans.record import Predicted, Provenance
from moa.plans.span import BLOCK, Floats, Ints, Reach

__all__ = ["FULL", "ModelInfo", "Plan", "Predicted", "Provenance", "Rule"]


class Plan(Content):
    """The rules of every group of a model. Plans are immutable, and equal when everything in them is equal.

    Its attributes are those of `moa.plans.content.Content`.
    """

    __slots__ = ("_made",)  # a `Reach`, where neither == nor a copy takes them along

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.groups.items())), self.defaults))  # the model's rope is a dict

    @classmethod
    def from_rules(
        cls,
        model: Any,
        rules: Mapping[int, Sequence[Rule]],
        *,
        defaults: Rule | None = None,
        predicted: Predicted | None = None,
        provenance: Provenance | None = None,
    ) -> "Plan":
        """Return a plan made of one rule per KV head of each layer.

        Args:
            model: A transformers model, its config, or a ModelInfo; so too in the other makers.
            rules: Layer to its rules. Layers left out take `defaults`.
            defaults: The rule of layers left out. Without it no layer may be left out, and the commonest rule serves.
            predicted: Expected figures.
            provenance: Where the plan came from.
        """
        info = ModelInfo.of(model)
        groups = {layer: tuple(rules[layer]) for layer in sorted(rules)}
        if defaults is not None:
            groups = dict.fromkeys(info.ruled_layers, (defaults,) * info.kv_heads) | groups
        elif groups:
            defaults = Counter(chain.from_iterable(groups.values())).most_common(1)[0][0]
        else:
            raise PlanError("a plan needs rules or defaults, found neither")
        return cls(model=info, groups=groups, defaults=defaults, predicted=predicted, provenance=provenance)

    def __deepcopy__(self, memo: Any = None) -> "Plan":
        return self  # nothing in it changes

    @classmethod
    def dense(cls, model: Any) -> "Plan":
        """Return the plan with full attention in every group."""
        return cls.from_rules(model, {}, defaults=FULL)

    @classmethod
    def uniform(cls, model: Any, density: float, *, at: int) -> "Plan":
        """Return a plan with the sink and one constant window for all groups, as in StreamingLLM (arXiv 2309.17453).

        The window is the widest, in blocks, whose density at length `at` is no more than `density`.

        Raises:
            BudgetInfeasible: Even the narrowest window keeps more.
        """
        return cls.from_rules(model, {}, defaults=makers.uniform(density, _length(at)))

    @classmethod
    def two_group(cls, model: Any, full_heads: Iterable[tuple[int, int]], window: int) -> "Plan":
        """Return a plan with full attention in some groups and one window in the rest (DuoAttention, arXiv 2410.10819).

        Args:
            model: As for `from_rules`.
            full_heads: (layer, KV head) of the groups with full attention.
            window: Tokens that the other groups see in addition to the sink of 64.
        """
        info = ModelInfo.of(model)
        groups, narrow = makers.two_group(info, full_heads, window)
        return cls.from_rules(info, groups, defaults=narrow)

    @classmethod
    def import_from(cls, form: str, source: Any, model: Any, **options: Any) -> "Plan":
        """Import what another tool found; `docs/plan.md` says how its meaning differs.

        Args:
            form: `moa` (MoA's JSON), `duo_attention` or `kvzip`: a name in `moa.plans.importers`.
            source: The other tool's file, or its content.
            model: As for `from_rules`.
            **options: Those of the format.

        Raises:
            PlanError: Format, options or content are invalid.
            Unsupported: The format cannot describe this model.
        """
        info = ModelInfo.of(model)
        origin = Provenance(note=f"imported from {form}")
        return cls.from_rules(info, import_rules(form, source, info, options), provenance=origin)

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], name: str = "", *, revision: str | None = None) -> "Plan":
        """Read a plan from a model's folder or a repository of the hub.

        Args:
            source: The folder, or OWNER/NAME.
            name: Empty for `moa-plan.yaml`; `0.25` for `moa-plan-0.25.yaml`, and so on.
            revision: Branch, tag or commit of the repository.

        Raises:
            PlanError: There is no such plan, its file is broken, or the hub cannot be asked.
        """
        return cls(**dict(hub.get(source, name, revision)))

    def save_pretrained(self, folder: str | PathLike[str], name: str = "") -> Path:
        """Write the plan into a folder, such as the model's own, where `moa.apply(model, "auto")` finds it.

        Raises:
            PlanError: The name is invalid, or nothing can be written there.
        """
        path = Path(folder) / hub.file_name(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PlanError(f"cannot write plan {path}: {error.strerror}") from None
        self.save(path)
        return path

    def push_to_hub(self, repo: str, name: str = "", *, private: bool | None = None) -> str:
        """Write the plan into a repository of the hub, such as the model's own, and return where it can be seen.

        The repository is made if it is not there. `huggingface_hub` has the token, from `hf auth login`.

        Raises:
            PlanError: The hub refuses.
        """
        return hub.push(self, repo, name, private=private)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Plan":
        """Return the plan that `to_dict` or a parsed plan file describes."""
        return cls(**dict(from_document(document)))

    @classmethod
    def load(cls, source: str | PathLike[str]) -> "Plan":
        """Read a plan file, or a shipped plan by its name.

        Raises:
            PlanError: No such file or shipped plan exists, or the file breaks the schema; the error names the place.
        """
        return cls(**dict(file.load(source)))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as YAML, whole or not at all; a loaded file saved again has the same bytes."""
        file.save(self, path)

    def to_dict(self, *, expand: bool = False) -> dict[str, Any]:
        """Return the plan file's content as plain JSON types; `expand` writes out every rule, for other engines."""
        return to_document(self, expand)

    def fingerprint(self) -> str:
        """Return a digest of the rules of every group; the plan's file, predictions and origin do not count."""
        table = {
            layer: [{"pattern": rule.pattern, **rule.model_dump(mode="json", exclude_defaults=True)} for rule in rules]
            for layer, rules in sorted(self.groups.items())
        }
        return sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]

    def check(self, model: Any) -> None:
        """Raise ModelMismatch, naming each field that differs, unless `model` has the shape planned for."""
        differences = self.model.differences(ModelInfo.of(model))
        if differences:
            raise ModelMismatch(f"made for another model (plan against model): {'; '.join(differences)}")

    def rule(self, layer: int, head: int) -> Rule:
        """Return the rule of KV head `head` of `layer`."""
        rules = self.groups[self._ruled(layer)]
        if not 0 <= head < len(rules):
            raise PlanError(f"KV head must be from 0 to {len(rules) - 1}, found {head}")
        return rules[head]

    def reach(self, layer: int) -> Reach:
        """Return the reach of the layer's groups, of shape [kv_heads]."""
        return self._reach[self.model.ruled_layers.index(self._ruled(layer))]

    def holds(self, layer: int) -> tuple[str, ...]:
        """Return which keys the sinks of the layer's groups hold: names in `moa.plans.span.HOLDS`, one per group."""
        return tuple(rule.holds for rule in self.groups[self._ruled(layer)])

    def first_table(self, layer: int, blocks: int) -> npt.NDArray[np.int32]:
        """Return the first block kept after the sink, per group and query block: int32 [kv_heads, blocks]."""
        return self.reach(layer).first(np.arange(blocks)).astype(np.int32)

    def spans(self, n: int) -> Ints:
        """Return the keys visible to the query at length `n`: int64 [layers, kv_heads], 0 in layers that keep none."""
        spans = np.zeros((self.model.layers, self.model.kv_heads), np.int64)
        spans[list(self.model.ruled_layers)] = self._reach.span(_length(n))
        if own := self.model.sliding:
            spans[list(own.layers)] = (n - 1) % own.window + 1 if own.chunked else min(n, own.window)
        return spans

    def density(self, n: int) -> float:
        """Return the mean of span/n over the groups that have rules, at length `n`."""
        return float(self._reach.span(_length(n)).mean() / n)

    def read_density(self, n: int) -> float:
        """Return the mean part of the bytes of `n` keys and values that a decode step reads, over groups with rules."""
        return float(self.read_shares(n).mean())

    def read_shares(self, n: int) -> Floats:
        """Return what `read_density` is the mean of: float64 [ruled layers, kv_heads]."""
        return np.asarray(self._read(n) / (n * reading.token_bytes(self.model.head_size)), np.float64)

    def read_bytes(self, n: int, batch_size: int = 1, dtype: Any = "float32") -> int:
        """Return the bytes of keys, values and summaries that a decode step reads, of the cache that `kv_bytes` counts.

        Args:
            n: Tokens of each sequence, that of the step included.
            batch_size: Sequences.
            dtype: Of the cache, as for `kv_bytes`.
        """
        ruled = int(self._read(n, self.model.token_bytes(dtype)).sum()) * batch_size
        return ruled + self.model.sliding_kv_bytes(batch_lengths(n, batch_size), dtype)

    def _read(self, n: int, token: int | None = None) -> Ints:
        """Return the bytes that each group reads: [ruled layers, kv_heads]; `token` as for `reading.read_bytes`."""
        rules = [self.groups[layer] for layer in self.model.ruled_layers]
        read256, given = (np.array([[getattr(r, name) for r in of] for of in rules]) for name in ("read256", "given"))
        return reading.read_bytes(read256, n, self._reach.span(_length(n)), given, self.model.head_size, token)

    def moves_keys(self) -> bool:
        """Return whether keys move into the sink of some group, so that it holds others than the first."""
        return any(rule.moves_keys() for rules in self.groups.values() for rule in rules)

    @property
    def whole(self) -> "Plan":
        """The plan whose groups keep the same, and read all of it."""
        return Plan.from_rules(self.model, {n: [rule.whole for rule in of] for n, of in self.groups.items()})

    def reads(self, layer: int | None = None) -> bool:
        """Return whether a group of the layer, or of any, reads less than it keeps: the layer's keys have summaries."""
        rules = chain.from_iterable(self.groups.values()) if layer is None else self.groups[self._ruled(layer)]
        return any(rule.read < 1 for rule in rules)

    def prefill_fraction(self, n: int) -> float:
        """Return the part of the causal (query, key) pairs that a prefill of `n` tokens keeps, over groups with rules.

        Every row of block b loses the 64 * (first(b) - S) keys between the sink and its first block, in every layer
        that reads them.
        """
        blocks = -(-_length(n) // BLOCK)
        rows = np.full(blocks, BLOCK)
        rows[-1] = n - BLOCK * (blocks - 1)
        lost = 0
        for layer, readers in zip(self.model.ruled_layers, self.model.readers.tolist(), strict=True):
            sink = self.reach(layer).sink
            lost += readers * BLOCK * int(((self.first_table(layer, blocks) - sink[:, None] // BLOCK) @ rows).sum())
        return 1.0 - lost / (n * (n + 1) // 2 * int(self.model.readers.sum()) * self.model.kv_heads)

    def kv_bytes(self, n: int | Sequence[int], batch_size: int = 1, dtype: Any = "float32") -> int:
        """Return the bytes that the cache allocates for a batch: keys, values, and summaries in layers that read.

        Layers without rules are counted as the model's own cache stores them (`ModelInfo.sliding_kv_bytes`).

        Args:
            n: Tokens seen, padding not counted: one length for the whole batch, or that of each sequence.
            batch_size: Sequences; with a list of lengths, 1 or the list's length.
            dtype: Of the cache: a name such as "bfloat16", a torch dtype, or the bytes of one element.
        """
        lengths = batch_lengths(n, batch_size)
        blocks = self._reach.cache_blocks(lengths).sum((1, 2))  # [layers]
        read = blocks[[self.reads(layer) for layer in self.model.ruled_layers]].sum()
        summaries = int(read) * reading.SUMMARIES * reading.summary_bytes(self.model.head_size)
        kept = int(blocks.sum()) * BLOCK * self.model.token_bytes(dtype)
        return kept + summaries + self.model.sliding_kv_bytes(lengths, dtype)

    @property
    def kv_dtype(self) -> Dtype:
        """The cache's dtype that `predicted` counts bytes in; bfloat16 where it does not say."""
        return (self.predicted and self.predicted.kv_dtype) or "bfloat16"

    @property
    def _reach(self) -> Reach:
        """The reach of all groups, of shape [ruled layers, kv_heads]; made on first use."""
        made: Reach | None = getattr(self, "_made", None)
        if made is None:
            rules = list(chain.from_iterable(self.groups[layer] for layer in self.model.ruled_layers))
            made = reach(rules).reshape(len(self.model.ruled_layers), self.model.kv_heads)
            object.__setattr__(self, "_made", made)
        return made

    def _ruled(self, layer: int) -> int:
        if layer not in self.groups:
            raise PlanError(f"layer {layer} has no rules; the layers that have are {sorted(self.groups)}")
        return layer


def _length(n: int) -> int:
    return whole("length", n)
