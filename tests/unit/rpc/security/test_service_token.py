"""Service tokens: what may be one, how they are shown and compared, and that none is ever quoted."""

import pytest

from presift.core.errors import PresiftError
from presift.rpc.security.service_token import bearer, bearer_token, fixed_tokens, is_one_of, tokens_from_file

TOKEN, OTHER = "xylophone-xylophone", "glockenspiel-glockenspiel"


def test_there_and_back():
    assert bearer_token([("x", "y"), bearer(TOKEN)]) == TOKEN
    assert bearer_token([("authorization", f"bEARER  {TOKEN} ")]) == TOKEN
    assert bearer_token(()) is None and bearer_token(None) is None


def test_any_of_them_is_right():
    assert is_one_of(TOKEN, [OTHER, TOKEN]) and is_one_of(TOKEN, [TOKEN, OTHER])
    assert not is_one_of(TOKEN, []) and not is_one_of("", [TOKEN]) and not is_one_of(TOKEN[:-1], [TOKEN])


@pytest.mark.parametrize("bad", ["", "xylophone", "xylophone xylophone", "xylophone\nxylophone", "xylophöne-xylophöne"])
def test_what_is_none_is_refused_without_quoting_it(bad, tmp_path):
    with pytest.raises(PresiftError, match=r"^service_token") as refused:
        fixed_tokens("service_token", bad)
    assert "xyl" not in refused.value.message
    file = tmp_path / "tokens"
    file.write_text(f"{bad}\n", encoding="utf-8")
    with pytest.raises(PresiftError, match=r"^service_token_file") as refused:
        tokens_from_file("service_token_file", file)
    assert "xyl" not in refused.value.message


def test_a_file_holds_one_a_line(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"\n {TOKEN} \r\n{OTHER}")
    assert tokens_from_file("service_token_file", file).current() == (TOKEN, OTHER)
    with pytest.raises(PresiftError, match=r"cannot read .*nowhere"):
        tokens_from_file("service_token_file", file.with_name("nowhere"))
