"""The attention of a decoder layer: one vLLM `Attention` per KV head, each with pages and metadata of its own.

On a CPU each is called. On a GPU the first is, for all of them (`fused.py`).
"""

import functools
import inspect
from typing import Any, NamedTuple

import torch
from vllm.config import get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.attention.selector import get_attn_backend

from moa.plans.span import BLOCK, FIRST_KEYS
from moa_vllm import advice, checks
from moa_vllm.backend import backend_for
from moa_vllm.groups import Groups, Head, Rules, kept, on_ranks, sort
from moa_vllm.settings import Settings
from moa_vllm.spec import HeadSpec

logger = init_logger("vllm.plugins.moa")

SIGNATURE = inspect.signature(Attention.__init__)


class Pages(NamedTuple):
    """What a head's spec says besides shape and dtype; `HeadSpec` describes the fields."""

    group: int
    rules: Rules
    most_blocks: int
    shared: bool


class HeadAttention(Attention):
    """One KV head and the query heads that share it."""

    def __init__(self, pages: Pages, **given: Any) -> None:
        super().__init__(**given)
        self._pages = pages

    def get_kv_cache_spec(self, vllm_config: Any) -> HeadSpec:
        """Return the spec of the head's pages."""
        return HeadSpec(
            block_size=BLOCK, num_kv_heads=1, head_size=self.head_size, head_size_v=self.head_size_v,
            dtype=self.kv_cache_torch_dtype, **self._pages._asdict(),
        )  # fmt: skip


class PlannedAttention(torch.nn.Module):
    """What a model's code gets for its `Attention`."""

    def __init__(self, asked: Settings, given: dict[str, Any]) -> None:
        """Make the heads.

        Args:
            asked: The plan.
            given: The arguments of the model's `Attention`, by name.

        Raises:
            ModelMismatch: The plan was made for another model.
            Unsupported: Something is asked for that no plan can honour here.
        """
        super().__init__()
        config = get_current_vllm_config()
        checks.engine(config, asked.plan)
        checks.layer(given)
        ranks, longest = config.parallel_config.tensor_parallel_size, config.model_config.max_model_len
        rules, groups = _grouped(asked, ranks, longest)
        shared = all(rule.holds == FIRST_KEYS for union in groups.rules for rule in union)
        chunk, steps = config.scheduler_config.max_num_batched_tokens, config.max_concurrent_batches
        for line in advice.lines(groups, longest, chunk, steps, shared=shared):
            logger.info_once(line)
        del given["attn_backend"]
        prefix, heads, kv_heads = given.pop("prefix"), given.pop("num_heads"), given.pop("num_kv_heads")
        layer, rank = extract_layer_index(prefix), get_tensor_model_parallel_rank()
        names = [f"{prefix}.kv{head}" for head in range(kv_heads)]
        own = [rules[layer, head][rank] for head in range(kv_heads)]
        size, dtype = given["head_size"], torch.get_default_dtype()
        self.fused = on_gpu()
        if self.fused:
            from moa_vllm import fused  # CPUs need no Triton

            checks.fused(given, SIGNATURE.parameters)
            found = fused.heads_of(names, own, longest, size, dtype, config.device_config.device)
            given |= {"num_heads": heads, "num_kv_heads": kv_heads, "heads": found}
            backends: list[type] = [fused.Backend] * kv_heads
        else:
            base = get_attn_backend(size, dtype, given["cache_config"].cache_dtype)
            given |= {"num_heads": heads // kv_heads, "num_kv_heads": 1}
            backends = [backend_for(base, rule) for rule in own]
        self.heads = torch.nn.ModuleList()
        for head, (name, backend) in enumerate(zip(names, backends, strict=True)):
            group = groups.of[layer, head]
            pages = Pages(group, groups.rules[group], kept(groups.rules[group]).most(longest, steps * chunk), shared)
            self.heads.append(HeadAttention(pages, prefix=name, attn_backend=backend, **given))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the attention of new tokens, each KV head by its rule: [tokens, heads * head size] like `query`."""
        if self.fused:
            found: torch.Tensor = self.heads[0](query, key, value)
            return found
        q, k, v = (x.unflatten(-1, (len(self.heads), -1)).transpose(0, 1).contiguous() for x in (query, key, value))
        return torch.cat([head(q[i], k[i], v[i]) for i, head in enumerate(self.heads)], dim=-1)


def planned(asked: Settings, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PlannedAttention:
    """Return what a model's code gets for its `Attention(*args, **kwargs)`."""
    bound = SIGNATURE.bind(None, *args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    given |= given.pop("extra_impl_args", {})
    del given["self"]
    given["num_kv_heads"] = given["num_kv_heads"] or given["num_heads"]
    return PlannedAttention(asked, given)


def on_gpu() -> bool:
    """Return whether the kernels for GPUs serve here."""
    return not current_platform.is_cpu()


@functools.cache
def _grouped(asked: Settings, ranks: int, longest: int) -> tuple[dict[Head, Rules], Groups]:
    """Return the rules of each rank's KV heads, and the KV-cache groups."""
    rules = on_ranks(asked.plan, ranks)
    return rules, sort(rules, longest, asked.groups)
