"""What the plugin hooks into in vLLM: when a release changes one of these, its test has the name."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch
from vllm.config import ModelConfig, ParallelConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    KVCacheLayout,
    KVCacheSpec,
    compute_layer_kv_cache_shape_bytes,
    compute_layout_strides,
)
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from moa.plans.errors import Unsupported
from moa_vllm import pages


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            Attention.__init__,
            "num_heads head_size scale num_kv_heads alibi_slopes use_alibi_sqrt cache_config quant_config "
            "logits_soft_cap per_layer_sliding_window prefix attn_type kv_sharing_target_layer_name "
            "mm_prefix_clamp_sliding_window attn_backend head_size_v extra_impl_args",
        ),
        (Attention.forward, "query key value output_shape output_dtype"),
        (Attention.get_kv_cache_spec, "vllm_config"),
        (AttentionMetadataBuilder.__init__, "kv_cache_spec layer_names vllm_config device"),
        (
            AttentionImpl.__init__,
            "num_heads head_size scale num_kv_heads alibi_slopes sliding_window kv_cache_dtype logits_soft_cap "
            "attn_type kv_sharing_target_layer_name",
        ),
        (AttentionMetadataBuilder.build, "common_prefix_len common_attn_metadata fast_build"),
        (AttentionMetadataBuilder.get_cudagraph_support, "vllm_config kv_cache_spec"),
        (
            CPUAttentionBackend.get_impl_cls().forward,
            "layer query key value kv_cache attn_metadata output output_scale output_block_scale",
        ),
        (SingleTypeKVCacheManager.remove_skipped_blocks, "request_id processed_computed_tokens num_prompt_tokens"),
        (SingleTypeKVCacheManager._remove_blocks_in_range, "request_id first_block last_block"),
        (SingleTypeKVCacheManager.cache_blocks, "request num_tokens retention_interval replay_boundaries"),
        (
            SingleTypeKVCacheManager.find_longest_cache_hit,
            "block_hashes max_length kv_cache_group_ids block_pool kv_cache_spec drop_eagle_block alignment_tokens "
            "dcp_world_size pcp_world_size",
        ),
        (
            resolve_block_hashes,
            "block_hashes hash_block_size block_size supports_fine_grained_hash_lookup alignment_tokens",
        ),
        (BlockPool.get_cached_block, "block_hash kv_cache_group_ids"),
        (KVCacheSpecRegistry.register, "kvcache_spec_cls manager_class uniform_type_base_spec"),
        (KVCacheSpecRegistry._ensure_registered, "vllm_config"),
        (KVCacheSpec.max_memory_usage_bytes, "vllm_config"),
        (KVCacheSpec.is_uniform_with_collection, "kv_cache_specs"),
    ],
    ids=lambda x: getattr(x, "__qualname__", ""),
)
def test_parameters(function, names):
    assert [name for name in parameters(function) if name not in ("self", "cls")] == names.split()


def test_python_makes_layers_by_the_new_of_their_base():
    assert issubclass(Attention, AttentionLayerBase)
    assert "__new__" not in vars(Attention)
    assert "__new__" not in vars(AttentionLayerBase) or AttentionLayerBase.__new__.__module__ == "moa_vllm.hook"


@pytest.mark.parametrize("name", ["block_size", "num_kv_heads", "head_size", "head_size_v", "dtype"])
def test_fields_of_a_spec(name):
    assert name in {field.name for field in dataclasses.fields(AttentionSpec)}


def test_specs_share_prefixes_unless_a_manager_says_otherwise():
    """Groups that opt out are not asked for hits at all: their pages would be taken for computed."""
    assert AttentionSpec(block_size=64, num_kv_heads=1, head_size=64, dtype=torch.float32).prefix_cacheable


@pytest.mark.parametrize(
    "name",
    [
        "query_start_loc", "query_start_loc_cpu", "seq_lens", "seq_lens_cpu_upper_bound", "num_reqs",
        "num_actual_tokens", "max_query_len", "max_seq_len", "block_table_tensor", "slot_mapping", "is_prefilling",
    ],
)  # fmt: skip
def test_fields_of_a_batch(name):
    assert name in {field.name for field in dataclasses.fields(CommonAttentionMetadata)}


@pytest.mark.parametrize(
    "name",
    [
        "additional_config", "cache_config", "kv_transfer_config", "max_concurrent_batches", "max_in_flight_tokens",
        "model_config", "parallel_config", "scheduler_config", "speculative_config",
    ],
)  # fmt: skip
def test_fields_of_the_configuration(name):
    assert name in {field.name for field in dataclasses.fields(VllmConfig)} | set(dir(VllmConfig))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(ModelConfig, "is_mm_prefix_lm"), (ModelConfig, "dtype"), (ParallelConfig, "pipeline_parallel_size")],
)
def test_fields_of_what_is_configured(kind, name):
    assert name in {field.name for field in dataclasses.fields(kind)} | set(dir(kind))


def test_names_of_graph_support():
    assert {"NEVER", "UNIFORM_SINGLE_TOKEN_DECODE"} <= set(AttentionCGSupport.__members__)


def test_names_of_a_back_end():
    assert "CUSTOM" in AttentionBackendEnum.__members__
    assert "LBHNC" in KVCacheLayout.__members__
    assert MultipleOf(64).base == 64


def test_a_block_of_one_head_is_in_one_piece():
    """Of every token its key, then its value."""
    spec = AttentionSpec(block_size=64, num_kv_heads=1, head_size=32, dtype=torch.bfloat16)
    assert compute_layer_kv_cache_shape_bytes(spec, 5) == (5, 1, 64, 2 * 32 * 2)
    assert compute_layout_strides(spec, 5, 3, KVCacheLayout.LBHNC)[1:] == (64 * 128, 64 * 128, 128, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_layout_of_pages(dtype, size):
    pages.check.__wrapped__("vec", dtype, size)


def test_another_layout_is_refused(monkeypatch):
    def by_rows(key, value, key_cache, value_cache, slots, isa, **settings):
        key_cache.flatten(0, 2)[slots], value_cache.flatten(0, 2)[slots] = key[:, 0], value[:, 0]

    monkeypatch.setattr(pages.ops, "cpu_attn_reshape_and_cache", by_rows)
    with pytest.raises(Unsupported, match="kernel 'rows' in float32: its pages have another layout"):
        pages.check.__wrapped__("rows", torch.float32, 32)


def test_what_is_stored_is_loaded():
    cache = torch.full((5, 1, 64, 2 * 32), torch.nan)
    k, v = torch.randn(2, 128, 32).unbind(0)
    pages.store(cache, torch.tensor([3, 1]), k, v)
    found = pages.load(cache, torch.tensor([3, 1]))
    assert torch.equal(found[0], k)
    assert torch.equal(found[1], v)
    assert cache[[0, 2, 4]].isnan().all()


def test_whoever_has_a_spec_knows_its_manager():
    """In a process of its own, as the scheduler is: it makes no layers, and gets specs from those that do."""
    code = (
        "from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry as registry\n"
        "from vllm.v1.kv_cache_interface import FullAttentionSpec\n"
        "from moa_vllm.spec import HeadSpec\n"
        "for kind in (HeadSpec, FullAttentionSpec): print(registry.get_manager_class(object.__new__(kind)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["HeadManager", "FullAttentionManager"]
