"""Serve a plan with vLLM, as a general plugin: `vllm serve MODEL --additional-config '{"moa_plan": "plan.yaml"}'`."""


def register() -> None:
    """Prepare vLLM for plans; it calls this in each of its processes, and without a plan nothing changes."""
    import vllm

    from moa_vllm import releases

    if not releases.supported(vllm.__version__):
        releases.refuse_plans(vllm.__version__)  # nothing else of another release need be as we know it
        return
    from moa_vllm import hook

    hook.install()
