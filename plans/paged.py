"""Say which plans an engine can follow that keeps the keys of each KV head in pages, as vLLM does."""

from moa.plans.errors import Unsupported
from moa.plans.plan import Plan


def check(plan: Plan) -> None:
    """Refuse plans and models that vLLM cannot follow.

    Raises:
        Unsupported: The message names what.
    """
    if others := plan.model.others:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in others.items())
        raise Unsupported(f"vLLM under a plan: all layers must be full attention, found {kinds}")
    if hybrid := plan.model.hybrid:
        raise Unsupported(f"vLLM under a plan: layers must keep keys alone, found a state beside them in {len(hybrid)}")
    if plan.model.latent:
        raise Unsupported(
            "vLLM under a plan: layers must cache keys and values, found latents (MLA): use the model without a plan"
        )
    if reading := [layer for layer in plan.groups if plan.reads(layer)]:
        raise Unsupported(
            f"vLLM under a plan with reads (layer {reading[0]}): it builds block tables before queries exist; "
            "take transformers"
        )
