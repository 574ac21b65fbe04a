"""The manager of a KV-cache group: it frees the blocks that no rule of the group reaches any more."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.v1.core.kv_cache_utils import resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager

from moa.plans.span import BLOCK


class HeadManager(SingleTypeKVCacheManager):
    """Keeps the sink's blocks and those of the widest window of the group."""

    def __init__(self, kv_cache_spec: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self._shared, self._kept = kv_cache_spec.shared, kv_cache_spec.kept
        self.max_admission_blocks_per_request = kv_cache_spec.most_blocks

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Free the blocks that queries from `processed_computed_tokens` on never see."""
        first = int(self._kept.first(processed_computed_tokens // BLOCK))
        self._remove_blocks_in_range(request_id, self._kept.sink, first)

    def cache_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Offer full blocks to later requests of the same prefix, unless sinks are rewritten in their pages."""
        if self._shared:
            super().cache_blocks(*args, **kwargs)

    @classmethod
    def find_longest_cache_hit(
        cls, block_hashes: Any, max_length: int, kv_cache_group_ids: list[int], block_pool: Any,
        kv_cache_spec: Any, drop_eagle_block: bool, alignment_tokens: int, dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[Any], ...], int]:  # fmt: skip
        """Return the blocks of the longest prefix of which all that the next query sees is there, and its length."""
        if not kv_cache_spec.shared:
            return tuple([] for _ in kv_cache_group_ids), 0
        hashes = resolve_block_hashes(
            block_hashes, block_pool.hash_block_size, BLOCK, supports_fine_grained_hash_lookup=False,
            alignment_tokens=alignment_tokens,
        )  # fmt: skip
        most = min(max_length // BLOCK, len(hashes))
        found: list[Sequence[Any] | None] = [
            block_pool.get_cached_block(hashes[i], kv_cache_group_ids) for i in range(most)
        ]
        keeps, longest, in_a_row = kv_cache_spec.kept, 0, 0
        wanted_from = np.maximum(keeps.first(np.arange(most + 1)), keeps.sink)
        for blocks in range(1, most + 1):
            in_a_row = in_a_row + 1 if found[blocks - 1] else 0
            if blocks <= keeps.sink and not in_a_row:
                break  # longer prefixes want that block too
            if in_a_row >= blocks - wanted_from[blocks] and BLOCK * blocks % alignment_tokens == 0:
                longest = blocks
        hit = tuple([block_pool.null_block] * longest for _ in kv_cache_group_ids)
        for i in (*range(min(keeps.sink, longest)), *range(wanted_from[longest], longest)):
            for row, block in zip(hit, found[i] or (), strict=True):
                row[i] = block
        return hit, BLOCK * longest
