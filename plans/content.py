"""Define what a plan consists of: what its file says, apart from all that `moa.plans.plan` answers about it."""

from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from moa.plans.model import ModelInfo
from moa.plans.patterns import AnyRule
from moa.plans.record import Predicted, Provenance
from moa.plans.schema import Frozen, Strict


class Content(Strict):
    """The content of a plan, checked.

    Attributes:
        model: The model it was made for.
        groups: For every layer that takes rules, one rule per KV head.
        defaults: The rule that the file writes once; it changes nothing but the file's form.
        predicted: Expected figures.
        provenance: Where the plan came from.
    """

    model: ModelInfo
    groups: Annotated[dict[int, tuple[AnyRule, ...]], AfterValidator(Frozen)]
    defaults: AnyRule
    predicted: Predicted | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _every_group_has_a_rule(self) -> Self:
        if tuple(sorted(self.groups)) != self.model.ruled_layers:
            raise ValueError(f"layers that take rules are {list(self.model.ruled_layers)}, found {sorted(self.groups)}")
        for layer, rules in self.groups.items():
            if len(rules) != self.model.kv_heads:
                raise ValueError(f"layer {layer} has {len(rules)} rules for {self.model.kv_heads} KV heads")
            for rule in rules if self.model.latent else ():
                if rule.moves_keys() or rule.read < 1:
                    raise ValueError(
                        f"layer {layer} caches latent vectors: its rules are of patterns that move no keys, and read "
                        f"all that they keep, found {rule.pattern} with read {rule.read:g}"
                    )
        return self
