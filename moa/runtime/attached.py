"""Attach what a plan needs to a model, and check before each call that all of it is still there."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from moa.hf import latent, own
from moa.hf.attention import switch
from moa.plans.errors import Unsupported, brief
from moa.plans.plan import Plan
from moa.runtime.attention import NAME, Backends, LayerState, register
from moa.runtime.rules import Rules
from moa.runtime.staged import ATTRIBUTE


class Attached:
    """What a plan adds to a model: an attention implementation in its configs, a `LayerState` per module, hooks.

    All of it is stored on the model, so a deep copy of the model has its own and also computes under the plan.
    """

    def __init__(
        self, decoder: PreTrainedModel, modules: Mapping[int, torch.nn.Module], plan: Plan, backends: Backends,
        before_call: Callable[..., Any], before_layers: Callable[..., None], after_call: Callable[..., None],
    ) -> None:  # fmt: skip
        """Attach the plan to the model.

        Args:
            decoder: The model whose config the attention modules read.
            modules: The attention module of each layer that attends to keys.
            plan: The plan.
            backends: The back-ends that compute attention.
            before_call: Called with the arguments and keyword arguments of each forward call of the decoder; it returns
                those to call with, or None for the same.
            before_layers: Called with those of its first block.
            after_call: Called with those of the decoder after each call that does not fail.

        Raises:
            Unsupported: The model does not use transformers' attention interface.
        """
        register()
        self._decoder, self._modules = decoder, list(modules.values())
        self._before_call, self._after_call = before_call, after_call
        self._before = [(config, config._attn_implementation) for config in self._configs()]
        self._name = own.name_for(decoder, self._modules, NAME)
        self._states = [self._state(plan, layer, module, backends) for layer, module in modules.items()]
        switch(decoder, self._name)
        if other := self._other():
            self._restore()
            raise Unsupported(f"an attention module of {type(decoder).__name__} has a config of its own, with {other}")
        self._hook = decoder.register_forward_pre_hook(self._check_call, with_kwargs=True)
        block = next((m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)), decoder)
        self._others = [
            decoder.register_forward_hook(self._end_call, with_kwargs=True),
            block.register_forward_pre_hook(before_layers, with_kwargs=True),
        ]
        for module, state in zip(self._modules, self._states, strict=True):
            setattr(module, ATTRIBUTE, state)
            if plan.model.latent and isinstance(state.attends_by, Rules):
                latent.keep(module)

    def _state(self, plan: Plan, layer: int, module: torch.nn.Module, backends: Backends) -> LayerState:
        source = plan.model.sources[layer]
        ruled = source in plan.model.ruled_layers
        attends_by = Rules(plan, source) if ruled else own.attention_of(self._name, module)
        return LayerState(attends_by, backends, self._is_hooked)

    def check(self) -> None:
        """Refuse a forward call in which some layer would not attend under the plan.

        Raises:
            Unsupported: Something that was attached has been replaced or removed.
        """
        if other := self._other():
            raise Unsupported(
                f"the model's attention implementation is {brief(other)}, set since moa.apply (by "
                f"set_attn_implementation, a new config, or continuous batching): call "
                f"Applied.remove(), or set_attn_implementation('{self._name}')"
            )
        for module, state in zip(self._modules, self._states, strict=True):
            if module.__dict__.get(ATTRIBUTE) is not state:
                raise Unsupported(
                    f"{type(module).__name__} has lost what moa.apply set on it ({ATTRIBUTE}): call Applied.remove() "
                    "and apply the plan again"
                )

    def remove(self) -> None:
        """Remove what is still there; an attention implementation that was set in the meantime stays."""
        for hook in (self._hook, *self._others):
            hook.remove()
        for module in self._modules:
            module.__dict__.pop(ATTRIBUTE, None)
            latent.expand(module)
        self._restore()

    def _restore(self) -> None:
        names = {id(config): name for config, name in self._before}
        first = self._before[0][1]
        if self._decoder.config._attn_implementation == self._name:
            self._decoder.set_attn_implementation(names.get(id(self._decoder.config), first))
        for config in [*self._configs(), *(config for config, _ in self._before)]:
            if config._attn_implementation == self._name:
                config._attn_implementation = names.get(id(config), first)

    def _check_call(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.check()
        return self._before_call(args, kwargs)

    def _end_call(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._after_call(args, kwargs)

    def _is_hooked(self) -> bool:
        return self._hook.id in self._decoder._forward_pre_hooks

    def _other(self) -> str | None:
        """Return the name of an attention implementation that has replaced ours, or None."""
        names = (config._attn_implementation for config in self._configs())
        return next((name or "eager" for name in names if name != self._name), None)

    def _configs(self) -> list[Any]:
        """Return the configs that name the mask and the attention function."""
        configs = [self._decoder.config, *(module.config for module in self._modules)]
        return list({id(config): config for config in configs}.values())  # often one object, which is slow to read
