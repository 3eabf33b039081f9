"""What presift calls, reads or writes of SGLang without hooking it: functions, classes and attributes.

A change in one of them breaks dropping KV or seeds as silently as one in a hooked function. So ops/sglang/canary.py
compares them too, and a version that was not tested drops KV only if it has all that this needs (`support`).
tests/ops/test_sglang_used_names.py finds names in presift's code that are missing here.
"""

from __future__ import annotations

from packaging.version import Version

_BATCH = "managers.schedule_batch"
_COMPONENTS = "managers.scheduler_components"
_PREFIX_CACHE = "mem_cache.base_prefix_cache"
_TREE = "mem_cache.unified_radix_cache.UnifiedRadixCache"

# By the module or class of `sglang.srt` that defines them in the oldest tested version.
_NAMES: dict[str, str] = {
    "arg_groups.fields.disagg.Disagg": "disaggregation_mode",
    "arg_groups.fields.model.Model": "model_path revision",
    "arg_groups.fields.parallel.Parallel": "enable_dp_attention nnodes pp_size tp_size",
    _BATCH: "FINISH_ABORT",
    f"{_BATCH}.Req": """
        __init__ arrival_processed_tokens cache_salt cached_tokens customized_info eos_token_ids extra_key finished
        finished_len finished_output finished_reason full_untruncated_fill_ids http_worker_ipc inflight_middle_chunks
        init_next_round_input is_retracted kv last_node lock_receipt logprob logprob_start_len origin_input_ids
        output_ids output_ids_through_stop prefix_indices priority retraction_count return_logprob rid sampling_params
        send_token_offset set_finish_with_abort skip_radix_cache_insert time_stats to_finish tokenizer
        update_finish_state vocab_size""",
    f"{_BATCH}.ReqKvInfo": "cache_protected_len holds_kv kv_allocated_len kv_committed_len req_pool_idx",
    f"{_BATCH}.ReqLogprob": "output_top_logprobs_idx output_top_logprobs_val",
    f"{_BATCH}.ScheduleBatch": """
        batch_is_full device extend_lens is_empty orig_seq_lens prefix_lens reqs sampling_info seq_lens seq_lens_cpu
        seq_lens_sum""",
    f"{_BATCH}.NextBatchPlan": "batch_to_run running_batch",
    "managers.io_struct": "AbortReq",
    "managers.io_struct.GetInternalStateReqOutput": "internal_state",
    "managers.io_struct.TokenizedGenerateReqInput": """
        cache_salt custom_logit_processor extra_key input_embeds input_ids logprob_start_len lora_id mm_inputs
        multi_item_delimiter_indices positional_embed_overrides return_hidden_states return_logprob sampling_params
        session_id session_params token_indices_to_pool token_type_ids""",
    "managers.io_struct.BaseReq": "rid",
    "managers.schedule_policy.AddReqResult": "CONTINUE NO_TOKEN OTHER",
    "managers.schedule_policy.PrefillAdder": "can_run_list running_batch tree_cache",
    "managers.scheduler.Scheduler": """
        _add_request_to_queue _pending_chunked_abort_req batch_result_processor chunked_req enable_hierarchical_cache
        enable_hisparse enable_lora enable_pdmux enable_unified_cache_external_linker enable_unified_memory
        forward_stream get_num_allocatable_reqs ipc_channels max_req_len max_total_num_tokens model_config
        output_streamer page_size req_to_token_pool schedule_low_priority_values_first server_args spec_algorithm
        token_to_kv_pool_allocator tokenizer tp_group tp_worker tree_cache waiting_queue""",
    f"{_COMPONENTS}.batch_result_processor.SchedulerBatchResultProcessor": "_maybe_update_reasoning_tokens",
    f"{_COMPONENTS}.ipc_channels.SchedulerIpcChannels": "send_to_tokenizer",
    f"{_COMPONENTS}.output_sender.SenderWrapper": "send_output",
    "managers.tp_worker.TpModelWorker": "model_runner",
    "managers.utils.GenerationBatchResult": "copy_done",
    "model_executor.cuda_graph_config.CudaGraphConfig": "prefill",
    "model_executor.cuda_graph_config.PhaseConfig": "backend",
    "model_executor.forward_batch_info.ForwardBatch": "forward_mode positions",
    "model_executor.forward_batch_info.ForwardMode": "is_decode_or_idle is_extend",
    "model_executor.model_runner.ModelRunner": "model req_to_token_pool token_to_kv_pool",
    "layers.logits_processor.LogitsProcessor": "_get_logits do_tensor_parallel_all_gather vocab_size",
    "layers.radix_attention.RadixAttention": """
        is_cross_attention layer_id logit_cap qk_head_dim scaling sliding_window_size tp_q_head_num""",
    "mem_cache.allocator.base.BaseTokenToKVPoolAllocator": "available_size get_kvcache page_size",
    "mem_cache.allocator.token.TokenToKVPoolAllocator": "alloc available_size free",
    "mem_cache.allocator.paged.PagedTokenToKVPoolAllocator": "alloc available_size free",
    _PREFIX_CACHE: "DecLockRefParams InsertParams",
    f"{_PREFIX_CACHE}.BasePrefixCache": "free_kv_row",
    f"{_PREFIX_CACHE}.IncLockRefResult": "to_dec_params",
    f"{_PREFIX_CACHE}.InsertResult": "last_device_node",
    "mem_cache.common": "evict_from_tree_cache",
    "mem_cache.memory_pool.KVCache": "dtype store_dtype",
    "mem_cache.memory_pool.MHATokenToKVPool": "get_key_buffer get_value_buffer kv_cache_layout",
    "mem_cache.memory_pool.ReqToTokenPool": "req_to_token write",
    "mem_cache.radix_cache.RadixKey": "__init__",
    _TREE: """
        advance_unpublished_req dec_lock_ref disable evictable_size inc_lock_ref insert protected_size
        token_to_kv_pool_allocator unpin""",
    "configs.model_config.ModelConfig": """
        context_len get_total_num_kv_heads hf_eos_token_id is_encoder_decoder is_multimodal model_is_mrope
        num_hidden_layers vocab_size""",
    "distributed.parallel_state.GroupCoordinator": "all_gather_object rank_in_group world_size",
    "observability.req_time_stats.SchedulerReqTimeStats": "set_wait_queue_entry_time wait_queue_entry_time",
    "plugins.hook_registry.HookRegistry": "_patched apply_hooks register",
    "plugins.hook_registry.HookType": "AROUND REPLACE",
    "runtime_context": "get_exec get_parallel get_serving",
    "sampling.sampling_params.SamplingParams": """
        custom_params ebnf frequency_penalty json_schema logit_bias max_new_tokens min_new_tokens n normalize
        presence_penalty regex repetition_penalty sampling_seed structural_tag top_k""",
    "speculative.spec_info.SpeculativeAlgorithm": "is_none",
}
# The same for what only `target/sglang/seeds.py` and, on a CPU, `target/cpu/weight_shapes.py` use.
_OTHERS: dict[str, str] = {
    "configs.update_config": "get_num_heads_padding_size update_intermediate_size",
    "layers.sampler": "top_k_top_p_min_p_sampling_from_probs_torch",
    "sampling.sampling_batch_info.SamplingBatchInfo": """
        min_ps need_min_p_sampling sampling_mask_batch_indices sampling_seed top_ks top_ps""",
}
# What a version changed since the one before, by the path in the oldest version; None: presift needs it no more.
_CHANGES: dict[str, dict[str, str | None]] = {
    "0.5.22": {
        f"{_BATCH}.Req.lock_receipt": f"{_BATCH}.Req.lock",
        f"{_BATCH}.Req.prefix_indices": f"{_BATCH}.Req.prefix_len",
        f"{_PREFIX_CACHE}.DecLockRefParams": None,
        f"{_TREE}.advance_unpublished_req": None,
        f"{_TREE}.unpin": f"{_TREE}.unlock",
    },
}


def used_names(sglang: str) -> list[str]:
    """The dotted paths of all names in a version of SGLang. An untested version has those of the newest one before."""
    return _paths(_NAMES | _OTHERS, sglang)


def plugin_names(sglang: str) -> list[str]:
    """Those of `used_names` that dropping KV needs."""
    return _paths(_NAMES, sglang)


def _paths(by_owner: dict[str, str], sglang: str) -> list[str]:
    paths: dict[str, str | None] = {}
    for owner, names in by_owner.items():
        paths |= {f"{owner}.{name}": f"{owner}.{name}" for name in names.split()}
    for version, changes in _CHANGES.items():
        if Version(version).release <= Version(sglang).release:
            paths |= {path: name for path, name in changes.items() if path in paths}
    return [f"sglang.srt.{path}" for path in paths.values() if path is not None]
