"""Make `generate` on a model under a plan use a `KVCache`, and check that the model does not replace it."""

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from moa.plans.errors import Unsupported, brief
from moa.plans.plan import Plan
from moa.plans.span import BLOCK
from moa.runtime.cache import KVCache
from moa.runtime.continuation import CONTINUE, longrope_limit

PREPARE_CACHE, PREPARE_INPUTS = "_prepare_cache_for_generation", "prepare_inputs_for_generation"
BATCHING = "init_continuous_batching"
PREFIXES = "PREFIX_TUNING", "CARTRIDGE"
"""Kinds of peft adapters that consist of keys and values."""


class Generator:
    """Replace three methods of the model instance that generates, if there is one, until `remove` is called."""

    def __init__(self, model: Any, plan: Plan, backends: Sequence[str]) -> None:
        self._model = next((m for m in model.modules() if isinstance(m, GenerationMixin)), None)
        if self._model is not None:
            theirs = getattr(type(self._model), PREPARE_INPUTS)
            ours = functools.partial(prepare_inputs, self._model)
            # transformers reads the signature to know which arguments the model takes
            setattr(self._model, PREPARE_INPUTS, functools.wraps(theirs.__get__(self._model))(ours))
            prefix = str(getattr(getattr(model, "active_peft_config", None), "peft_type", "")).endswith(PREFIXES)
            cache = refuse_prefix if prefix else functools.partial(prepare_cache, self._model, plan, backends)
            setattr(self._model, PREPARE_CACHE, cache)
            setattr(self._model, BATCHING, refuse_batching)

    def remove(self) -> None:
        """Give the model its methods back."""
        if self._model is not None:
            for name in (PREPARE_INPUTS, PREPARE_CACHE, BATCHING):
                self._model.__dict__.pop(name, None)


def prepare_cache(
    model: Any,
    plan: Plan,
    backends: Sequence[str],
    generation_config: Any,
    model_kwargs: dict[str, Any],
    generation_mode: Any,
    batch_size: int,
    max_cache_length: int,
) -> None:
    """Stand in for `GenerationMixin._prepare_cache_for_generation`: use the given cache, or else make a `KVCache`.

    Raises:
        Unsupported: Cache settings of the call or of the checkpoint's generation_config contradict each other, or the
            given cache does not hold the beginning of the text.
    """
    given, kind = model_kwargs.get("past_key_values"), generation_config.cache_implementation
    if given is None and kind not in (None, "dynamic"):
        raise Unsupported(
            f"cache_implementation={brief(kind)} under a plan: pass cache_implementation=None, which overrides the "
            "checkpoint's generation_config too, and for a fixed cache past_key_values=moa.KVCache(plan, max_length=…)"
        )
    looked_up = generation_config.prompt_lookup_num_tokens
    if looked_up is not None and looked_up > BLOCK:
        raise Unsupported(
            f"prompt_lookup_num_tokens={looked_up} under a plan: at most {BLOCK}, since of drafts no more can be taken "
            "back where the plan has dropped the keys before them"
        )
    mask = model_kwargs.get("attention_mask")
    columns = getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[-1]
    if isinstance(given, KVCache):
        given.transcript.check_pending = True
        given.serve(backends)
    if given is not None:
        _check_given(given, columns, generation_config, generation_mode, max_cache_length)
    if plan.reads() and generation_mode == GenerationMode.ASSISTED_GENERATION:
        raise Unsupported(
            "drafts (assistant_model, prompt_lookup_num_tokens) under a plan that reads less than it keeps: "
            "transformers passes the prompt and the first drafts in one call, which reads all that is kept, so other "
            "tokens would come than without drafts; leave the drafts out, or take a plan without reads (plan.whole)"
        )
    limit, drafts = (
        longrope_limit(model.config.get_text_config()),
        generation_mode == GenerationMode.ASSISTED_GENERATION,
    )
    if drafts and limit is not None and columns is not None and columns <= limit <= max_cache_length:
        raise Unsupported(
            f"assisted generation from {columns} to {max_cache_length + 1} tokens: the model's rotary embedding "
            f"changes after {limit}, so drafts beyond would change the tokens before them; leave the drafts out"
        )
    type(model)._prepare_cache_for_generation(
        model, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    )
    made = model_kwargs.get("past_key_values")
    if made is not None and not generation_config.use_cache:
        raise Unsupported(
            f"use_cache={generation_config.use_cache} beside a cache: the whole text would be fed again at every step; "
            "pass use_cache=True if the checkpoint's generation_config or config says otherwise, or no cache"
        )
    if given is None and made is not None:
        model_kwargs["past_key_values"] = KVCache(plan)
        if generation_config.is_assistant:
            model_kwargs["past_key_values"].activate_past_recording()


def _check_given(cache: Any, columns: int | None, config: Any, mode: Any, max_cache_length: int) -> None:
    """Refuse a given cache that is too small, holds as much as the prompt or more, or contradicts other settings."""
    if config.cache_implementation is not None:
        raise Unsupported(
            f"cache_implementation={brief(config.cache_implementation)} beside past_key_values: pass "
            "cache_implementation=None if the checkpoint's generation_config has it, or no cache"
        )
    if isinstance(cache, KVCache) and cache.max_length is not None and cache.max_length < max_cache_length:
        raise Unsupported(f"the cache has max_length {cache.max_length}, this call may need {max_cache_length}")
    drafts = mode == GenerationMode.ASSISTED_GENERATION
    if drafts and isinstance(cache, KVCache):
        cache.require("crop", "assisted generation with a cache that has a max_length (pass one without)")
    cached = int(cache.get_seq_length())
    if cached and columns is not None and columns <= cached:
        raise Unsupported(f"the cache holds {cached} tokens, the prompt {columns}: {CONTINUE}")
    if cached and drafts:
        raise Unsupported(
            f"assisted generation from a cache that holds {cached} tokens: transformers would feed it the whole text "
            "again; reset the cache"
        )


def _check_text(cache: KVCache, ids: Tensor | None, mask: Any) -> None:
    """Refuse, before the first step, a given cache that does not hold the beginning of the prompt."""
    cache.transcript.check_pending = False
    cached = int(cache.get_seq_length())
    whole = ids is not None and (mask is None or (isinstance(mask, Tensor) and mask.shape == ids.shape))
    if ids is not None and whole and cache.transcript.differs(ids, mask, cached):
        raise Unsupported(f"the cache holds {cached} tokens of another text than the prompt: {CONTINUE}")


def refuse_batching(*args: Any, **kwargs: Any) -> NoReturn:
    """Stand in for `init_continuous_batching`: refuse at once what its worker would report request by request."""
    raise Unsupported(
        "continuous batching (generate_batch) under a plan: it has an attention and a cache of its own; call generate, "
        "or remove the plan (Applied.remove())"
    )


def refuse_prefix(*args: Any, **kwargs: Any) -> NoReturn:
    """Stand in for `_prepare_cache_for_generation` where peft would replace a `KVCache` by a cache of its own."""
    raise Unsupported(
        "generate with prefix tuning (peft) under a plan: peft replaces the cache by one that holds the prefix; use "
        "another kind of adapter, or generate without a plan"
    )


def prepare_inputs(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for the model's `prepare_inputs_for_generation`, which may drop its cache to compute all keys again.

    Phi-3 does so where its rotary embedding changes. It then gets the same cache, emptied, and stays under the plan.
    """
    theirs = getattr(type(model), PREPARE_INPUTS)
    cache = kwargs.get("past_key_values")
    if isinstance(cache, KVCache) and cache.transcript.check_pending:
        _check_text(cache, args[0] if args else kwargs.get("input_ids"), kwargs.get("attention_mask"))
    inputs = theirs(model, *args, **kwargs)
    cache, kept = kwargs.get("past_key_values"), inputs.get("past_key_values")
    if isinstance(cache, KVCache) and kept is not cache:
        if kept is not None:
            raise Unsupported(f"{type(model).__name__} replaces its cache by a {type(kept).__name__}")
        cache.reset()
        inputs = theirs(model, *args, **kwargs | {"next_sequence_length": None})  # all tokens: 5.17 gives only the last
        inputs["past_key_values"] = cache
    return inputs
