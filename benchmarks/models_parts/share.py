"""Compute the share of a model's KV cache that lies in layers with rules, from its config alone."""

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo

LENGTHS = 32768, 131072
DTYPE = "bfloat16"


def share(kind: str) -> dict[str, Any] | None:
    """Return layers by kind, KV bytes, and their share in layers with rules at each length, of the default config.

    None where every layer takes rules, or the default config is refused.
    """
    try:
        info = ModelInfo.of(CONFIG_MAPPING[kind]())
    except MoaError:
        return None
    if not info.others:
        return None
    bytes_ = {n: info.dense_kv_bytes(n, dtype=DTYPE) for n in LENGTHS}
    shares = {n: info.ruled_share(n) for n in LENGTHS}
    return {"layers": info.layers, "others": info.others, "kv_bytes": bytes_, "share": shares}
