"""What is passed on to SGLang as it is."""

import pytest

from presift.core.errors import InvalidRequest
from presift.models.folder import resolve
from presift.target.sglang.arguments import SglangOptions, server_arguments, set_environment


@pytest.fixture
def folder(tiny_model):
    return resolve(str(tiny_model("tinyq")))


def test_one_process_by_default(folder):
    arguments = server_arguments(SglangOptions(folder))
    assert (arguments["tp_size"], arguments["dp_size"]) == (1, 1)


def test_the_weights_have_the_folders_revision(folder):
    assert server_arguments(SglangOptions(folder))["weight_version"] == folder.revision


def test_several_gpus(folder):
    arguments = server_arguments(SglangOptions(folder, device="cuda", tensor_parallel=4, data_parallel=2))
    assert (arguments["tp_size"], arguments["dp_size"]) == (4, 2)


@pytest.mark.parametrize("kv_dropping", [True, False])
def test_the_plugin_is_switched_on_only_to_drop_kv(folder, kv_dropping):
    environment = {}
    switches = {"PRESIFT_SGLANG_PLUGIN": "1"} if kv_dropping else {}
    set_environment(SglangOptions(folder, kv_dropping=kv_dropping), environment)
    assert {name: value for name, value in environment.items() if name.startswith("PRESIFT")} == switches


def test_a_gpu_runs_as_sglang_chooses(folder):
    chosen = {"sampling_backend", "grammar_backend", "chunked_prefill_size", "attention_backend", "max_total_tokens"}
    arguments = server_arguments(SglangOptions(folder, device="cuda"))
    assert not (chosen | {"disable_cuda_graph", "sleep_on_idle"}) & arguments.keys()
    on_cpu = server_arguments(SglangOptions(folder))
    assert chosen <= on_cpu.keys()
    assert (on_cpu["sampling_backend"], on_cpu["grammar_backend"]) == ("pytorch", "none")
    assert (on_cpu["chunked_prefill_size"], on_cpu["attention_backend"]) == (512, "torch_native")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_set_is_passed_on_for_every_device(folder, device):
    chosen = {"prefill_chunk_tokens": 64, "kv_pool_tokens": 900, "kv_page_tokens": 16, "attention_backend": "fa3"}
    arguments = server_arguments(SglangOptions(folder, device=device, **chosen))
    assert (arguments["chunked_prefill_size"], arguments["max_total_tokens"]) == (64, 900)
    assert (arguments["page_size"], arguments["attention_backend"]) == (16, "fa3")


@pytest.mark.parametrize(("device", "chunk", "page"), [("cuda", 72, 16), ("cpu", 16, 64), ("cpu", None, 48)])
def test_a_chunk_must_be_whole_pages(folder, device, chunk, page):
    options = SglangOptions(folder, device=device, prefill_chunk_tokens=chunk, kv_page_tokens=page)
    with pytest.raises(InvalidRequest) as refused:
        server_arguments(options)
    error = refused.value
    assert (error.field, error.value) == ("prefill_chunk_tokens", chunk or 512)
    assert error.limit == f"a multiple of kv_page_tokens ({page})"


def test_where_sglang_chooses_the_chunk_or_the_page_nothing_is_refused(folder):
    assert "page_size" not in server_arguments(SglangOptions(folder, prefill_chunk_tokens=100))
    assert "chunked_prefill_size" not in server_arguments(SglangOptions(folder, device="cuda", kv_page_tokens=48))
