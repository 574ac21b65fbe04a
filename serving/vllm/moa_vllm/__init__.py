"""Serve a plan with vLLM, as a general plugin: `vllm serve MODEL --additional-config '{"moa_plan": "plan.yaml"}'`."""


def register() -> None:
    """Prepare vLLM for plans; it calls this in each of its processes, and without a plan nothing changes."""
    from moa_vllm import hook

    hook.install()
