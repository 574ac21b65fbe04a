"""The KV-cache spec: what vLLM is told of the pages of one KV head."""

from dataclasses import dataclass
from typing import Any

from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from moa_vllm.groups import Kept, Rules, kept
from moa_vllm.manager import HeadManager


@dataclass(frozen=True, kw_only=True)
class HeadSpec(AttentionSpec):
    """Pages of one KV head, kept as its group needs. All ranks have the same spec for the same head of a layer.

    Attributes:
        group: The KV-cache group.
        rules: The rules of the group's heads, on all ranks.
        most_blocks: The most blocks that one request of the longest length holds at once.
        shared: Whether requests may share the pages of a common prefix.
    """

    group: int
    rules: Rules
    most_blocks: int
    shared: bool

    @property
    def kept(self) -> Kept:
        """What the group keeps."""
        return kept(self.rules)

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Return the most bytes that one request holds, for the check at start-up and the reported concurrency.

        vLLM also asks with shorter `max_model_len`, to say which would fit.
        """
        longest = vllm_config.model_config.max_model_len
        return self.kept.most(longest, vllm_config.max_in_flight_tokens) * int(self.page_size_bytes)

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Return whether all these specs are of one group: no others share a block table."""
        return all(spec == self for spec in kv_cache_specs.values())


# In every process that meets a spec, since whoever is sent one imports this. vLLM's own come first: it registers them
# only where there are none yet.
KVCacheSpecRegistry._ensure_registered()
KVCacheSpecRegistry.register(HeadSpec, manager_class=HeadManager, uniform_type_base_spec=HeadSpec)
