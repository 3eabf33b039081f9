"""The draft's settings: flags and variables are one list."""

import pytest

from presift.draft.settings import DraftSettings
from presift.rpc.settings import InnerSettings


@pytest.fixture
def read(monkeypatch):
    def parse(*flags, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["draft", *flags])
        return DraftSettings()

    return parse


def test_flags_and_variables_say_the_same(read):
    flags = read("--model", "/m", "--dtype", "float32", "--listen", "127.0.0.1:0", "--chunk-tokens", "64")
    variables = read(
        PRESIFT_DRAFT_MODEL="/m",
        PRESIFT_DRAFT_DTYPE="float32",
        PRESIFT_DRAFT_LISTEN="127.0.0.1:0",
        PRESIFT_DRAFT_CHUNK_TOKENS="64",
    )
    assert flags == variables
    assert (flags.max_queue, flags.device, flags.threads) == (64, "cpu", None)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--model", "/m", "--dtype", "float16"),
        ("--model", "/m", "--chunk-tokens", "0"),
        ("--model", "/m", "--max-queue", "-1"),
        ("--model", "/m", "--unheard-of", "1"),
        ("--model", "/m", "--listen", "nowhere"),
    ],
)
def test_what_is_missing_or_wrong_is_refused(flags, read):
    with pytest.raises((SystemExit, ValueError)):
        read(*flags)


def test_there_are_fewer_than_twenty_of_its_own():
    """Those that every service has are in groups of their own: TLS, tokens, telemetry."""
    assert len(DraftSettings.model_fields.keys() - InnerSettings.model_fields.keys()) < 20


def test_head_profiles_are_in_presift_home_unless_a_variable_names_their_folder(monkeypatch):
    def folder():
        return str(DraftSettings(_cli_parse_args=["--model=m"]).head_profiles)

    monkeypatch.setenv("PRESIFT_HOME", "/somewhere")
    assert folder() == "/somewhere/head-profiles"
    monkeypatch.setenv("PRESIFT_DRAFT_HEAD_PROFILES", "/elsewhere")
    assert folder() == "/elsewhere"
