"""A Hugging Face folder's tokenizer and chat template."""

import json

import pytest

from presift.core.errors import InvalidRequest
from presift.core.spans import covered
from presift.orchestrator.domain.request import Chat, Message, Text, TextPart
from presift.orchestrator.prompt.loader import load_bridge, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools: ' + m.content) }}{% endif %}"
    "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@pytest.fixture
def folder(tmp_path, bpe):
    bpe.save(str(tmp_path / "tokenizer.json"))

    def made(template):
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({"chat_template": template} if template else {})
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return made


def chat(role, text):
    return Chat((Message(role, (TextPart(text),)),))


def test_chats_are_rendered_with_the_models_own_template(folder):
    loaded = load_tokenizer(folder(TEMPLATE), 1000)
    assert loaded.render(chat("user", "hi")) == "<|im_start|>hi<|im_end|><|im_start|>"


def test_a_chat_that_the_template_refuses_is_invalid(folder):
    with pytest.raises(InvalidRequest) as refusal:
        load_tokenizer(folder(TEMPLATE), 1000).render(chat("tool", "secret"))
    assert refusal.value.field == "prompt.chat" and "secret" not in str(refusal.value)


async def test_without_a_template_only_text_is_accepted(folder, bpe):
    loaded = load_tokenizer(folder(None), 1000)
    assert (await loaded.tokenize(Text("The fox"))).ids.tolist() == bpe.encode("The fox").ids
    with pytest.raises(InvalidRequest, match="no chat template"):
        loaded.render(chat("user", "hi"))


def test_bridge_between_two_vocabularies(folder, tmp_path, words):
    path = tmp_path / "draft"
    path.mkdir()
    words.save(str(path / "tokenizer.json"))
    target = load_tokenizer(folder(None), 0)
    made = load_bridge(str(path), target)
    assert made.draft_fingerprint == load_tokenizer(str(path), 0).fingerprint() != target.fingerprint()


def test_no_bridge_for_a_shared_vocabulary(folder):
    path = folder(None)
    assert load_bridge(path, load_tokenizer(path, 0)) is None


@pytest.mark.parametrize("missing", ["draft_tokenizer", "tokenizer"])
def test_cross_vocabulary_needs_both_tokenizers(folder, missing):
    path = folder(None)
    target = load_tokenizer(None if missing == "tokenizer" else path, 0)
    with pytest.raises(InvalidRequest) as refusal:
        load_bridge(None if missing == "draft_tokenizer" else path, target)
    assert refusal.value.field == missing and "cross_vocabulary" in refusal.value.message


def test_without_a_tokenizer_only_token_ids_are_accepted():
    with pytest.raises(InvalidRequest, match="no tokenizer"):
        load_tokenizer(None, 1000).render(Text("x"))


ODD_TEMPLATES = (
    "{{ messages[0].content + 1 }}",
    "{{ tools[0].function.name.upper() | length + 'x' }}",
    "{{ 1 / (messages | length - 1) }}",
    "{{ messages[9].content }}",
    "{{ tools[0]['function'] | int | string | tojson | list | sum }}",
)


@pytest.mark.parametrize("template", ODD_TEMPLATES)
def test_errors_of_a_template_are_invalid_requests(folder, template):
    odd = Chat(chat("user", "secret").messages, tools_json=('{"function": 7}',))
    with pytest.raises(InvalidRequest) as refusal:
        load_tokenizer(folder(template), 1000).render(odd)
    assert refusal.value.field == "prompt.chat" and "secret" not in str(refusal.value)


def test_a_folder_without_a_tokenizer_is_refused_by_the_name_of_its_setting(tmp_path):
    with pytest.raises(InvalidRequest, match="tokenizer") as refused:
        load_tokenizer(str(tmp_path), 0)
    assert refused.value.details["field"] == "tokenizer" and refused.value.details["value"] == str(tmp_path)


# -- further variables, and an answer to continue --

THINKING = (
    "{%- generation %}{% endgeneration -%}{{ bos_token }}{% set n = namespace(x=1) %}"
    "{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% if loop.last %}{% break %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{{ '' if enable_thinking is defined and not enable_thinking "
    "else '<think>' }}{{ effort | default('') }}{% endif %}"
)


def with_variables(variables, template_chat=None, **options):
    return Chat((template_chat or chat("user", "hi")).messages, template_kwargs_json=variables, **options)


@pytest.mark.parametrize(
    ("variables", "end"),
    [("", "<think>"), ('{"enable_thinking": true}', "<think>"), ('{"enable_thinking": false, "effort": "x"}', "x")],
)
def test_variables_that_the_template_reads(folder, variables, end):
    assert load_tokenizer(folder(THINKING), 1000).render(with_variables(variables)).endswith(f"<|im_start|>{end}")


NOT_VARIABLES = (
    "thinking",
    "messages",
    "tools",
    "add_generation_prompt",
    "tokenize",
    "bos_token",
    "namespace",
    "n",
    "m",
)


@pytest.mark.parametrize("name", [*NOT_VARIABLES, "continue_final_message", "continues", "variables"])
def test_other_variables_are_refused_by_name(folder, name):
    with pytest.raises(InvalidRequest) as refusal:
        load_tokenizer(folder(THINKING), 1000).render(with_variables(json.dumps({name: 1})))
    assert refusal.value.field == f"prompt.chat.template_kwargs_json.{name}"
    assert refusal.value.limit == "unset: the template has effort, enable_thinking"


@pytest.mark.parametrize("variables", ["[]", "{", '{"enable_thinking": "\\ud800"}', "1"])
def test_variables_are_a_json_object(folder, variables):
    with pytest.raises(InvalidRequest) as refusal:
        load_tokenizer(folder(THINKING), 1000).render(with_variables(variables))
    assert refusal.value.field == "prompt.chat.template_kwargs_json"


async def test_variables_are_part_of_what_is_remembered(folder):
    loaded = load_tokenizer(folder(THINKING), 100_000)
    on, off = [await loaded.tokenize(with_variables(json.dumps({"enable_thinking": each}))) for each in (True, False)]
    assert on.ids.tolist() != off.ids.tolist()
    assert await loaded.tokenize(with_variables('{"enable_thinking":true}')) is on


@pytest.mark.parametrize("text", ["Because", "Because \n", "<think>a</think>b"])
@pytest.mark.parametrize("template", [TEMPLATE, THINKING])
async def test_a_prompt_that_ends_with_the_answer_to_continue(folder, template, text):
    loaded = load_tokenizer(folder(template), 1000)
    turns = (*chat("user", "First. ").messages, *chat("user", "Why?").messages, *chat("assistant", text).messages)
    prompt = Chat(turns, continue_final_message=True)
    rendered = loaded.render(prompt)
    assert rendered.endswith(text if template is TEMPLATE else text.rstrip())
    tokenized = await loaded.tokenize(prompt)
    free = ~covered(tokenized.protected, int(tokenized.ids.size))
    said = loaded.backend.decode(tokenized.ids[free].tolist())
    assert said == ("First. " if template is TEMPLATE else "First.")


def test_calls_in_a_message_to_continue_are_refused_for_what_they_are(folder):
    """A rendering ends with the text of the message that is continued, so calls after it are left out."""
    template = (
        "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls or [] %}"
        "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    call = '{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}'
    asked, said = chat("user", "q").messages[0], Message("assistant", (TextPart("so"),), tool_calls_json=(call,))
    loaded = load_tokenizer(folder(template), 1000)
    assert '{"id"' not in loaded.render(Chat((asked, said)))
    with pytest.raises(InvalidRequest, match="unset in a message to continue"):
        loaded.render(Chat((asked, said), continue_final_message=True))


def test_a_chat_that_is_refused_has_the_templates_reason(folder):
    template = (
        "{% for m in messages %}{% if loop.index0 > 0 and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    twice = Chat(chat("user", "secret").messages * 2)
    with pytest.raises(InvalidRequest, match="which says: roles must alternate") as refusal:
        load_tokenizer(folder(template), 1000).render(twice)
    assert "secret" not in str(refusal.value)


READS_PARTS = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
READS_BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}|{% endfor %}{% endif %}{% endfor %}"
)
STRIPS = "{% for m in messages %}<|im_start|>{{ m.content | trim }}{% endfor %}"
PARTS = Chat((Message("user", (TextPart("one"), TextPart("two"))),), separate_parts=True)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [(READS_PARTS, "[one][two]"), (READS_BOTH, "one|two|"), (TEMPLATE, "one two"), (STRIPS, "<|im_start|>one two")],
)
def test_parts_are_given_to_a_template_that_reads_them(folder, template, rendered):
    assert rendered in load_tokenizer(folder(template), 1000).render(PARTS)


def test_a_template_that_reads_definitions_without_openais_wrapper(folder):
    template = "{% for t in tools %}{{ t.name.upper() }}{% endfor %}{{ messages[0].content }}"
    tool = '{"type": "function", "function": {"name": "add"}}'
    rendered = load_tokenizer(folder(template), 1000).render(Chat(chat("user", "hi").messages, (tool,)))
    assert rendered == "ADDhi"
