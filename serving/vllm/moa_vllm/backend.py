"""The back-end for CPUs: vLLM's own, told to see only a rule's pages."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata

from moa.kernels.keydiff.selection import Scores
from moa.kernels.sink_contents import SCORES
from moa.plans.patterns import Rule, reach
from moa.plans.span import BLOCK, LONGEST, Ints, Reach
from moa_vllm import pages
from moa_vllm.sinks import Request, Text
from moa_vllm.tables import sequences


@functools.cache
def backend_for(base: type, rule: Rule) -> type:
    """Return a subclass of vLLM's back-end `base` that follows a rule; `base` itself where all keys are seen."""
    seen = reach([rule]).reshape()
    if seen.first(LONGEST // BLOCK) <= seen.sink // BLOCK:
        return base
    scores_of = SCORES[rule.holds]
    builder = _builder(base.get_builder_cls(), seen, scores_of)  # type: ignore[attr-defined]
    numbers = "_".join(str(x).replace("-", "m") for x in rule.numbers)
    members = {"get_builder_cls": staticmethod(lambda: builder), "get_name": base.get_name}  # type: ignore[attr-defined]
    if scores_of is not None:
        impl = _impl(base.get_impl_cls(), int(seen.sink) // BLOCK, scores_of)  # type: ignore[attr-defined]
        members["get_impl_cls"] = staticmethod(lambda: impl)
    # vLLM shares metadata between layers of a group by the back-end's name
    return type(f"{base.__name__}_{rule.pattern}_{numbers}", (base,), members)


class SinkMetadata(NamedTuple):
    """What a back-end whose sinks move needs.

    Attributes:
        apart: Rows of requests with one new token, int64; None where all requests have one.
        stock: vLLM's metadata of those; None if there are none.
        requests: Those with more new tokens, and those whose sinks move after this step.
    """

    apart: Tensor | None
    stock: Any
    requests: list[Request]


def under_rule(batch: CommonAttentionMetadata, new: Ints, length: Ints, rule: Reach) -> CommonAttentionMetadata:
    """Return the batch with a sequence per query block, whose block table names only the pages that it sees.

    Args:
        batch: The batch.
        new, length: New tokens of each request, and its length with them.
        rule: The reach of one rule, of shape [].
    """
    found = sequences(new, length, rule)
    table = batch.block_table_tensor
    request, blocks = (torch.from_numpy(x).to(table.device) for x in (found.request, found.blocks))
    begin = torch.from_numpy(np.append(0, found.queries.cumsum()).astype(np.int32))
    keys = torch.from_numpy(found.keys.astype(np.int32))
    return batch.replace(
        query_start_loc=begin.to(table.device), query_start_loc_cpu=begin, seq_lens=keys.to(table.device),
        seq_lens_cpu_upper_bound=keys, num_reqs=len(keys), num_actual_tokens=int(found.queries.sum()),
        max_query_len=int(found.queries.max()), max_seq_len=int(found.keys.max()),
        block_table_tensor=table[request[:, None], blocks].contiguous(), is_prefilling=None,
    )  # fmt: skip


def _builder(base: type, rule: Reach, scores_of: Scores | None) -> type:
    class Builder(base):
        """Builds metadata under a rule."""

        supports_update_block_table = False

        def __init__(self, kv_cache_spec: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(kv_cache_spec, *args, **kwargs)
            if scores_of is not None:
                pages.check(self.isa, kv_cache_spec.dtype, kv_cache_spec.head_size)

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
            """Return that no graph can hold it: the number of sequences changes from step to step."""
            return AttentionCGSupport.NEVER

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            """Return the metadata of a batch."""
            batch = common_attn_metadata
            starts = batch.query_start_loc_cpu.numpy()[: batch.num_reqs + 1].astype(np.int64)
            on_host = batch.seq_lens_cpu_upper_bound
            length = (batch.seq_lens.cpu() if on_host is None else on_host).numpy()[: batch.num_reqs].astype(np.int64)
            new = np.diff(starts)
            if scores_of is None:
                return super().build(0, under_rule(batch, new, length, rule), fast_build)
            single = new == 1
            stock = (
                super().build(0, under_rule(batch, new * single, length, rule), fast_build) if single.any() else None
            )
            moves = rule.first(length // BLOCK) > rule.first((length - new) // BLOCK)
            requests = [
                Request(
                    int(starts[r]), int(new[r]), int(length[r]),
                    rule.first(np.arange((length[r] - new[r]) // BLOCK, length[r] // BLOCK + 1)).tolist(),
                    batch.block_table_tensor[r],
                )
                for r in np.flatnonzero((new > 1) | (single & moves))
            ]  # fmt: skip
            apart = torch.from_numpy(starts[:-1][single]) if (new > 1).any() else None
            return SinkMetadata(apart, stock, requests)

    return Builder


def _impl(base: type, sink: int, scores_of: Scores) -> type:
    class Impl(base):
        """Attends where sinks move."""

        def forward(
            self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, attn_metadata: Any,
            output: Tensor, *args: Any, **kwargs: Any,
        ) -> Tensor:  # fmt: skip
            """Write the attention of a batch to `output`, and let sinks hold what the next queries see."""
            if attn_metadata is None:  # vLLM is measuring its memory
                return output
            score = _scores(layer, kv_cache)
            apart, stock, requests = attn_metadata
            if apart is None:
                super().forward(layer, query, key, value, kv_cache, stock, output, *args, **kwargs)
            elif stock is not None:
                some = torch.empty_like(output[apart])
                super().forward(layer, query[apart], key, value, kv_cache, stock, some, *args, **kwargs)
                output[apart] = some
            for request in requests:
                text = Text(request, sink, scores_of, kv_cache, score)
                if request.new > 1:
                    rows = slice(request.begin, request.begin + request.new)
                    output[rows] = text.attend(query[rows], self.scale)
                if request.edges[-1] > request.edges[0]:
                    text.leave(kv_cache, score)
            return output

    return Impl


def _scores(layer: Any, kv_cache: Tensor) -> Tensor:
    """Return the scores of keys in the sinks of a layer [pages, 64], made when it first runs on these pages."""
    made: Tensor | None = getattr(layer, "moa_scores", None)
    if made is None or len(made) != len(kv_cache):
        made = layer.moa_scores = torch.zeros(len(kv_cache), BLOCK)
    return made
