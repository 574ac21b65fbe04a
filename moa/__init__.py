"""Find, apply and run sparse-attention plans for pretrained language models.

The public names load on first use, so that `import moa` and `moa --help` stay free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moa.plans.errors import BudgetInfeasible, MoaError, ModelMismatch, PlanError, ProfileError, Unsupported
from moa.version import __version__ as __version__

if TYPE_CHECKING:
    from moa.benching import bench_plan
    from moa.comparing import compare_runs
    from moa.compressing import compress
    from moa.diagnosing import diagnose
    from moa.evaluating import evaluate_plans
    from moa.exporting import block_masks
    from moa.finding import find_plan
    from moa.fronts import find_front
    from moa.generating import generate_text
    from moa.harnessing import evaluate_harness
    from moa.hf.load import load_model
    from moa.listing import list_plans
    from moa.measuring import measure_costs
    from moa.plans.plan import Plan
    from moa.profiler.profile import Profile
    from moa.profiling import profile_model
    from moa.refining import refine_plan
    from moa.reporting import write_pictures, write_report
    from moa.runtime.applied import Applied, apply
    from moa.runtime.cache import KVCache
    from moa.serving import serve_model

_HOMES = {
    "Applied": "moa.runtime.applied",
    "KVCache": "moa.runtime.cache",
    "Plan": "moa.plans.plan",
    "Profile": "moa.profiler.profile",
    "apply": "moa.runtime.applied",
    "bench_plan": "moa.benching",
    "block_masks": "moa.exporting",
    "compare_runs": "moa.comparing",
    "compress": "moa.compressing",
    "diagnose": "moa.diagnosing",
    "evaluate_harness": "moa.harnessing",
    "evaluate_plans": "moa.evaluating",
    "find_front": "moa.fronts",
    "find_plan": "moa.finding",
    "generate_text": "moa.generating",
    "list_plans": "moa.listing",
    "load_model": "moa.hf.load",
    "measure_costs": "moa.measuring",
    "profile_model": "moa.profiling",
    "refine_plan": "moa.refining",
    "serve_model": "moa.serving",
    "write_pictures": "moa.reporting",
    "write_report": "moa.reporting",
}

__all__ = [
    "Applied", "BudgetInfeasible", "KVCache", "MoaError", "ModelMismatch", "Plan", "PlanError", "Profile",
    "ProfileError", "Unsupported", "apply", "bench_plan", "block_masks", "compare_runs", "compress", "diagnose",
    "evaluate_harness", "evaluate_plans", "find_front", "find_plan", "generate_text", "list_plans", "load_model",
    "measure_costs", "profile_model", "refine_plan", "serve_model", "write_pictures", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'moa' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
