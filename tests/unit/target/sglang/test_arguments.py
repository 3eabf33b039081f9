"""What is passed on to SGLang as it is."""

import pytest

from presift.models.folder import resolve
from presift.target.sglang.arguments import SglangOptions, server_arguments, set_environment


@pytest.fixture
def folder(tiny_model):
    return resolve(str(tiny_model("tinyq")))


def test_one_process_by_default(folder):
    arguments = server_arguments(SglangOptions(folder))
    assert (arguments["tp_size"], arguments["dp_size"]) == (1, 1)


def test_several_gpus(folder):
    arguments = server_arguments(SglangOptions(folder, device="cuda", tensor_parallel=4, data_parallel=2))
    assert (arguments["tp_size"], arguments["dp_size"]) == (4, 2)


@pytest.mark.parametrize(("kv_dropping", "switch"), [(True, {"PRESIFT_SGLANG_PLUGIN": "1"}), (False, {})])
def test_the_plugin_is_switched_on_only_to_drop_kv(folder, kv_dropping, switch):
    environment = {}
    set_environment(SglangOptions(folder, kv_dropping=kv_dropping), environment)
    assert {name: value for name, value in environment.items() if name.startswith("PRESIFT")} == switch


def test_a_gpu_samples_as_sglang_chooses(folder):
    assert "sampling_backend" not in server_arguments(SglangOptions(folder, device="cuda"))
    assert server_arguments(SglangOptions(folder))["sampling_backend"] == "pytorch"
