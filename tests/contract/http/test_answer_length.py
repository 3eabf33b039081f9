"""An answer's length near the context's end, at every endpoint: a prompt that fits is read in full."""

from dataclasses import replace

import pytest

from ..fakes.http_api import MODEL
from ..fakes.services import model
from ..fakes.stack import ALL_ROUTES, DEFAULTS

CONTEXT = 4_000
NEAR_THE_END = 3_700
TEXT = "a" * NEAR_THE_END
CHAT = [{"role": "user", "content": TEXT}]
ENDPOINTS = {
    "chat/completions": ({"messages": CHAT}, ("max_tokens", "max_completion_tokens")),
    "completions": ({"prompt": TEXT}, ("max_tokens",)),
    "responses": ({"input": TEXT}, ("max_output_tokens",)),
    "messages": ({"messages": CHAT}, ("max_tokens",)),
}
CASES = [(path, name, length) for path, (_, names) in ENDPOINTS.items() for name in names for length in (None, 2**63)]
CASES.remove(("messages", "max_tokens", None))  # Anthropic's API requires it


@pytest.mark.parametrize(("path", "name", "length"), CASES)
async def test_a_prompt_that_fits_is_read_in_full(open_stack, open_http_api, path, name, length):
    defaults = replace(DEFAULTS, compress_above_tokens=CONTEXT // 2)
    target = model("target", context_tokens=CONTEXT)
    api = await open_http_api(
        await open_stack(routes=ALL_ROUTES, target=target, defaults=defaults), max_new_tokens=1_024
    )
    rest, names = ENDPOINTS[path][0], {} if length is None else {name: length}
    body = {"model": MODEL, **rest, **names, "presift": {"budget": {"max_prompt_tokens": 3_900}}}
    answer = await api.http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    decision, sent = answer.json()["presift"]["decision"], api.stack.target.calls[-1]
    assert decision["route"] == "full" and decision["kept_tokens"] == decision["prompt_tokens"] >= NEAR_THE_END
    assert len(sent.token_ids) + sent.sampling.max_new_tokens == CONTEXT
