"""Put a transformers model under a plan, and take it off again."""

from functools import partial
from os import PathLike
from typing import Any, Self

from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache

from moa.attention import ATTRIBUTE, NAME, Backends, LayerState, register
from moa.cache import KVCache
from moa.hf.attention import attention_modules, decoder_of, switch
from moa.plans.errors import ModelMismatch, Unsupported
from moa.plans.plan import Plan
from moa.rules import Rules

_PREPARE = "_prepare_cache_for_generation"


def apply(model: Any, plan: Plan | str | PathLike[str], backend: str | None = None) -> "Applied":
    """Let `model` attend by `plan`, in place.

    Afterwards `generate` keeps its keys in a `KVCache`, and `forward` attends under the plan with or without a cache.
    Nothing of the model's weights or classes changes; `Applied.remove`, or leaving a `with` block, undoes it.

    Args:
        model: A transformers decoder-only model in evaluation mode, bare or wrapped (peft).
        plan: A plan made for it, the path of a plan file, or the name of a shipped plan.
        backend: reference, torch, numba or triton; by default the one meant for each layer's device.

    Returns:
        The handle that takes the plan off.

    Raises:
        ModelMismatch: The plan was made for another model.
        Unsupported: The model has a feature that plans cannot honour, or is under a plan already.
    """
    return Applied(model, plan if isinstance(plan, Plan) else Plan.load(plan), backend)


class Applied:
    """A model under a plan, until `remove`; a context manager.

    Attributes:
        model: The model.
        plan: The plan.
        backend: Names of the back-ends for the model's devices, sorted.
    """

    def __init__(self, model: Any, plan: Plan, backend: str | None) -> None:
        plan.check(model)
        modules = attention_modules(model, plan.model)
        decoder = decoder_of(model, modules)
        backends = Backends(backend)
        devices = {p.device for p in model.parameters() if p.device.type != "meta"}  # meta: offloaded for now
        self.backend = tuple(sorted({backends.on(device).name for device in devices}))
        heads = plan.model.query_heads // plan.model.kv_heads
        for device in devices:
            backends.on(device).ready(heads, plan.model.head_size, decoder.dtype)
        register()
        self._before = switch(decoder, NAME)
        for layer, module in enumerate(modules):
            rules = Rules(plan, layer) if layer in plan.model.ruled_layers else None
            setattr(module, ATTRIBUTE, LayerState(rules, backends))
        self._hook = decoder.register_forward_pre_hook(partial(_check_call, plan), with_kwargs=True)
        self._generator = next((m for m in model.modules() if isinstance(m, GenerationMixin)), None)
        if self._generator is not None:
            setattr(self._generator, _PREPARE, partial(_prepare_cache, self._generator, plan))
        self._modules, self._decoder, self._removed = modules, decoder, False
        self.model, self.plan = model, plan

    def remove(self) -> None:
        """Take the plan off: the model is as it was. Doing so twice is harmless."""
        if self._removed:
            return
        self._removed = True
        self._hook.remove()
        if self._generator is not None:
            delattr(self._generator, _PREPARE)
        for module in self._modules:
            delattr(module, ATTRIBUTE)
        self._decoder.set_attn_implementation(self._before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _check_call(plan: Plan, decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before every forward call: refuse what the attention function could not see to be wrong."""
    if kwargs.get("output_attentions", decoder.config.output_attentions):
        raise Unsupported("output_attentions under a plan: attention weights are never held whole")
    for given in (*args, *kwargs.values()):
        if not isinstance(given, Cache):
            continue
        if isinstance(given, KVCache):
            if given.plan is not plan:
                if (given.plan.groups, given.plan.model) != (plan.groups, plan.model):
                    raise ModelMismatch("the cache was made for another plan than the model is under")
                given.plan = plan  # so that the next call need not compare
            given.check_in_step()
        elif type(given) is not DynamicCache:
            raise Unsupported(
                f"{type(given).__name__} under a plan: use moa.KVCache(plan, max_length=…) or DynamicCache"
            )


def _prepare_cache(
    model: Any,
    plan: Plan,
    generation_config: Any,
    model_kwargs: dict[str, Any],
    generation_mode: Any,
    batch_size: int,
    max_cache_length: int,
) -> None:
    """Stands for `GenerationMixin._prepare_cache_for_generation` on a model under a plan: the cache is a `KVCache`."""
    given = model_kwargs.get("past_key_values")
    if given is None and generation_config.cache_implementation not in (None, "dynamic"):
        raise Unsupported(
            f"cache_implementation={generation_config.cache_implementation!r} under a plan: leave it out, or pass "
            "past_key_values=moa.KVCache(plan, max_length=…)"
        )
    if isinstance(given, KVCache) and given.max_length is not None and given.max_length < max_cache_length:
        raise Unsupported(f"the cache has max_length {given.max_length}, this call may need {max_cache_length}")
    type(model)._prepare_cache_for_generation(
        model, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    )
    if given is None and model_kwargs.get("past_key_values") is not None:
        model_kwargs["past_key_values"] = KVCache(plan)
        if generation_config.is_assistant:
            model_kwargs["past_key_values"].activate_past_recording()
