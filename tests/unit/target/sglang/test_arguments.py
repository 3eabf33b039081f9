"""What is passed on to SGLang as it is."""

import pytest

from presift.models.folder import resolve
from presift.target.sglang.arguments import SglangOptions, server_arguments


@pytest.fixture
def folder(tiny_model):
    return resolve(str(tiny_model("tinyq")))


def test_one_process_by_default(folder):
    arguments = server_arguments(SglangOptions(folder))
    assert (arguments["tp_size"], arguments["dp_size"]) == (1, 1)


def test_several_gpus(folder):
    arguments = server_arguments(SglangOptions(folder, device="cuda", tensor_parallel=4, data_parallel=2))
    assert (arguments["tp_size"], arguments["dp_size"]) == (4, 2)
