"""The one place where vLLM is changed: `Attention(...)`, in any model's code, makes ours where a plan is asked for."""

from typing import Any

from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.attention import Attention

from moa_vllm import settings


def install() -> None:
    """Replace `Attention.__new__`; a second time changes nothing."""
    Attention.__new__ = staticmethod(_new)


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    config = get_current_vllm_config_or_none()
    asked = settings.of(config) if cls is Attention and config is not None else None
    if asked is None:
        following = super(Attention, cls).__new__
        return following(cls) if following is object.__new__ else following(cls, *args, **kwargs)
    from moa_vllm.layer import SIGNATURE, PlannedAttention

    bound = SIGNATURE.bind(None, *args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    given |= given.pop("extra_impl_args", {})
    del given["self"]
    given["num_kv_heads"] = given["num_kv_heads"] or given["num_heads"]
    return PlannedAttention(asked, given)  # no Attention, so Python does not call its __init__
