"""The back-end for GPUs: all KV heads of a layer attend in one call of our Triton kernels, which read vLLM's blocks.

For vLLM every KV head is an `Attention` of its own, with a spec, blocks and a block table. Only the first one of a
layer is called, with the queries, keys and values of all; it finds the blocks and tables of the others by their names.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from moa.kernels.pooled import Pool
from moa.kernels.sink_contents import SCORES
from moa.kernels.triton.common import require_supported
from moa.kernels.triton.pooled import Layer, Places, launch
from moa.plans.errors import Unsupported
from moa.plans.patterns import Rule, reach
from moa.plans.span import BLOCK


class Heads(NamedTuple):
    """The KV heads of a layer.

    Attributes:
        names: The name under which vLLM knows each.
        layer: What the kernels know of them.
    """

    names: list[str]
    layer: Layer


def heads_of(
    names: list[str], rules: Sequence[Rule], longest: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> Heads:
    """Return the KV heads of a layer, whose tables are on the device from here on.

    Args:
        names: The name of each.
        rules: Its rule.
        longest: The longest text, tokens.
        head_size: Head size.
        dtype: Of queries, keys and values.
        device: Where they are computed.

    Raises:
        Unsupported: A rule moves keys, or no kernel takes the head size or dtype.
    """
    for rule in rules:
        if SCORES[rule.holds] is not None:
            raise Unsupported(f"{rule.pattern} with vLLM is for CPUs so far: take a plan of sink_window rules")
    require_supported(torch.empty(1, 1, head_size, dtype=dtype, device="meta"))
    return Heads(names, Layer.of(reach(rules), longest, device))


class Step(NamedTuple):
    """What the builder of a KV-cache group hands on: tensors of vLLM's, as they are.

    Attributes:
        cu_seqlens: int32 [requests + 1], offsets of each request's new tokens.
        lengths: int32 [requests], tokens of each with the new ones.
        table: int32 [requests, most], its blocks.
        slots: int64 [tokens], where each new token goes; negative where it is one of no request.
        longest: The most new tokens of a request, or more.
    """

    cu_seqlens: Tensor
    lengths: Tensor
    table: Tensor
    slots: Tensor
    longest: int


class Builder(AttentionMetadataBuilder):
    """Builds the metadata of a KV-cache group."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Return that a graph can hold steps of one new token per request: their launches differ in no number."""
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Step:
        """Return the metadata of a batch."""
        batch: CommonAttentionMetadata = common_attn_metadata
        return Step(
            batch.query_start_loc, batch.seq_lens, batch.block_table_tensor, batch.slot_mapping, batch.max_query_len
        )


class Impl(AttentionImpl):
    """Attends for all KV heads of a layer."""

    def __init__(
        self, num_heads: int, head_size: int, scale: float, num_kv_heads: int, *_refused: Any, heads: Heads,
        **_unset: Any,
    ) -> None:  # fmt: skip
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads
        self.kv_cache_dtype, self.heads = "auto", heads
        self._places: dict[tuple[int, ...], Places] = {}

    def forward(
        self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, attn_metadata: Any,
        output: Tensor, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Write new keys and values of all KV heads to their blocks, and the attention of a batch to `output`.

        Args:
            query: [tokens, query heads, head size].
            key, value: [tokens, KV heads, head size].
            attn_metadata: Of the first head; None while vLLM measures its memory.
            output: Like `query`.
        """
        if attn_metadata is None:
            return output.zero_()
        step: Step = attn_metadata
        launch(
            query, key, value, output, layer=self.heads.layer, places=self._where(), cu_seqlens=step.cu_seqlens,
            lengths=step.lengths, longest=step.longest, scale=self.scale,
        )  # fmt: skip
        return output

    def _where(self) -> Places:
        """Return where blocks, tables and slots lie.

        They stay there, so the addresses are on the device before a graph is captured. All that were seen are kept,
        since a graph may hold any of them.
        """
        context = get_forward_context()
        pools = []
        for name in self.heads.names:
            step, blocks = context.attn_metadata[name], context.no_compile_layers[name].kv_cache
            pools.append(Pool(blocks[:, 0], step.table, step.slots))
        seen = tuple(x.data_ptr() for pool in pools for x in pool)
        if seen not in self._places:
            self._places[seen] = Places.of(pools)
        return self._places[seen]._replace(tokens=len(pools[0].slots))


class Backend(AttentionBackend):
    """What vLLM asks about the kernels."""

    @staticmethod
    def get_name() -> str:
        """Return one of vLLM's names for back-ends."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        """Return the class that attends."""
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        """Return the class that builds metadata."""
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Return the tokens of a block."""
        return [MultipleOf(BLOCK)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Return the layouts in which a block of one KV head is in one piece."""
        return (KVCacheLayout.LBHNC,)
