"""Put a transformers model under a plan, and take the plan off again."""

import inspect
import logging
from functools import partial
from itertools import product
from os import PathLike
from typing import Any, Self

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from moa.hf.attention import attention_modules, decoder_of
from moa.hf.known import BUDGET, known_plan
from moa.hf.limits import check_window, ruled_window
from moa.hf.softmax import traits
from moa.kernels import forks
from moa.kernels.dispatch import computed_by
from moa.plans.errors import MoaError, ModelMismatch, Unsupported
from moa.plans.plan import Plan
from moa.runtime import stock
from moa.runtime.attached import Attached
from moa.runtime.attention import Backends
from moa.runtime.cache import KVCache
from moa.runtime.continuation import check_continuation, columns_after, reads_last_alone
from moa.runtime.generation import Generator

LOG = logging.getLogger("moa")


def apply(
    model: Any, plan: Plan | str | PathLike[str], backend: str | None = None, *, budget: float | None = None
) -> "Applied":
    """Put `model` under `plan`, in place, and return a handle that undoes it.

    Afterwards `generate` keeps its keys in a `KVCache`, and `forward` attends under the plan with or without a cache.
    The model's weights and classes stay as they are. `Applied.remove`, or the end of a `with` block, undoes it.

    Args:
        model: A transformers decoder-only model in evaluation mode, bare or wrapped (peft).
        plan: A plan made for it, the path of a plan file, or the name of a shipped plan; or `auto` for the plan that
            keeps most within `budget`, of those that `moa.compress` made here for these weights, the shipped ones, and
            those in the model's folder or, if none of these fits, its repository of the hub.
        backend: Name of a back-end (`moa.kernels.registry`); by default the one for each layer's device.
        budget: With `auto`, the largest density at the longest text that the plan is for; by default 0.25.

    Returns:
        The handle whose `remove` takes the plan off the model.

    Raises:
        ModelMismatch: The plan was made for another model.
        MoaError: No plan is known for `auto`, or a budget is given for a plan that is named.
        Unsupported: The model has a feature that plans cannot honour, or is already under a plan.
    """
    if plan == "auto":
        plan = known_plan(model, BUDGET if budget is None else budget)
    elif budget is not None:
        raise MoaError("a budget is for the plan auto; this one is named")
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
        backends = Backends(backend, reads=plan.reads(), latent=bool(plan.model.latent))
        if backends.reads and (size := plan.model.head_size) % 4:  # summaries have two channels in a byte
            raise Unsupported(f"rules with read need a head size that is a multiple of 4, found {size}: leave read out")
        softmaxes = {traits(modules[layer]) for layer in plan.model.ruled_layers}
        devices = {p.device for p in model.parameters() if p.device.type != "meta"}  # meta: offloaded for now
        self.backend = tuple(sorted({backends.on(device).name for device in devices}))
        window = ruled_window(decoder.config, plan.model)
        before, after = partial(_check_call, plan, backends, softmaxes, decoder, window), partial(_end_call, decoder)
        self._attached = Attached(decoder, modules, plan, backends, before, partial(_enter_layers, plan), after)
        self._generator, self._removed = Generator(model, plan, self.backend), False
        self.model, self.plan = model, plan
        for used in backends.loaded():
            LOG.info("prefill of this plan: %s; decode: %s", *computed_by(used, plan.moves_keys(), plan.reads()))

    def remove(self) -> None:
        """Take the plan off and leave the model as it was before; a second call does nothing.

        An attention implementation that was set while the model was under the plan stays.
        """
        if self._removed:
            return
        self._removed = True
        self._generator.remove()
        self._attached.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _check_call(
    plan: Plan, backends: Backends, softmaxes: set[tuple[bool, bool]], decoder: PreTrainedModel, window: int | None,
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:  # fmt: skip
    """Refuse, before every forward call, what the attention function could not notice.

    Returns:
        Arguments and keyword arguments to call with in place of these, or None.
    """
    if not torch.compiler.is_compiling():  # not in `apply`: a later fork would lose threads that a back-end starts
        if decoder.device.type == "cpu":
            forks.check()
        heads = plan.model.query_heads // plan.model.kv_heads
        for backend, softmax in product(backends.loaded(), softmaxes):
            backend.warm_up(heads, plan.model.head_size, decoder.dtype, *softmax, backends.reads)
    call = _by_name(decoder, args, kwargs)
    if call.get("output_attentions", decoder.config.output_attentions):
        raise Unsupported(
            "output_attentions under a plan: attention weights are never computed as a whole; set it to False, in the "
            "model's config too"
        )
    caches = [given for given in call.values() if isinstance(given, Cache)]
    if window is not None:
        check_window(window, columns_after(call, caches[0] if caches else None))
    for given in caches:
        stock.check_whole(given)
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
        stock.check_states(given, plan.model)
        check_continuation(decoder, given, call, plan.model)
    if plan.model.shared:  # a number lets layers that share keys compute the last tokens alone
        alone = reads_last_alone(call, caches[0] if caches else None, plan)
        return (), call | {"logits_to_keep": 1 if alone else None}
    return None


def _enter_layers(plan: Plan, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Record that a forward call has come so far that layers may hold its tokens.

    A `KVCache` finds out by itself how far each layer came where all keep keys of their own. A cache that the model
    made has no `in_call`, and is lost if the call fails.
    """
    if torch.compiler.is_compiling():
        return
    partly = plan.model.stateful_layers or plan.model.shared
    for given in (*args, *kwargs.values()):
        if isinstance(given, Cache) and hasattr(given, "in_call") and (partly or not isinstance(given, KVCache)):
            given.in_call = True


def _end_call(decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Record, after every forward call that does not fail, that all layers have stored its tokens."""
    if torch.compiler.is_compiling():
        return
    for given in _by_name(decoder, args, kwargs).values():
        if isinstance(given, Cache):
            given.in_call = False


def _by_name(decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward call by their names."""
    return dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs if args else kwargs
