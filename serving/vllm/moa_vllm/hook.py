"""The one place where vLLM is changed: `Attention(...)`, in any model's code, makes ours where a plan is asked for."""

from typing import Any

from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from moa.plans.errors import Unsupported
from moa_vllm import settings


def install() -> None:
    """Replace `__new__` of all layers that keep something of a text; a second time changes nothing."""
    AttentionLayerBase.__new__ = staticmethod(_new)


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    config = get_current_vllm_config_or_none()
    asked = settings.of(config) if config is not None else None
    if asked is not None:
        from moa_vllm import checks
        from moa_vllm.layer import HeadAttention, planned

        if cls is Attention:
            return planned(asked, args, kwargs)  # no Attention, so Python does not call its __init__
        if cls is not HeadAttention:
            checks.engine(config, asked.plan)
            raise Unsupported(f"vLLM under a plan: layers must be Attention, found {cls.__name__}")
    following = super(AttentionLayerBase, cls).__new__
    return following(cls) if following is object.__new__ else following(cls, *args, **kwargs)
