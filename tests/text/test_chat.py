"""Chat templates: what transformers renders, and nothing that a template should not do."""

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.text import sandbox
from selfevo_jax.text.chat import ChatTemplate

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = [{"role": "user", "content": "  Hi there \n"}]
TALK = [
    {"role": "user", "content": "One <b>&amp;</b> 'q' \"d\""},
    {"role": "assistant", "content": " two\n"},
    {"role": "user", "content": "three\n\n{{ 4 }} {% raw %}"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
 + message['content'] | trim + '<|eot_id|>' %}
{%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{- content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
QWEN = """{%- if tools %}{{- 'tools' }}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.found and message.role == "user" %}{% set ns.found = true %}{% endif %}
{%- endfor %}
{%- macro turn(m) %}
    {{- '<|im_start|>' + m.role + '\\n' ~ m.content ~ '<|im_end|>\\n' }}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == "system" %}{% continue %}{% endif %}
    {{- turn(message) }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
{{- messages[0] | tojson }}{{- messages | map(attribute='role') | join(',') }}
{{- messages[0].content.strip().split(' ')[0].replace('O', '0').upper() | replace('E', '3') }}
"""


def theirs(source, messages, add):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    engine = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=source, **SPECIALS
    )
    return engine.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("source", [CHATML, LLAMA3, ZEPHYR, MISTRAL, QWEN])
def test_renders_as_transformers(source, add):
    template = ChatTemplate(source, SPECIALS)
    for messages in [USER, TALK] + ([] if source is MISTRAL else [SYSTEM]):
        assert template.render(messages, add) == theirs(source, messages, add)


def test_smollm_template_renders_as_transformers(smollm, reference):
    for messages in (USER, TALK, SYSTEM):
        for add in (True, False):
            assert smollm.chat.render(messages, add) == reference.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add
            )


def test_hash_is_that_of_the_source():
    a, b = ChatTemplate(CHATML, SPECIALS), ChatTemplate(CHATML, {})
    assert a.hash == b.hash and len(a.hash) == 64
    assert ChatTemplate(CHATML + " ", SPECIALS).hash != a.hash


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ (messages|attr('__class__')) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ range.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ strftime_now('%Y') }}",
        "{{ 'x'.translate({120: 'yyyy'}) }}",
    ],
)
def test_attacks_are_refused(attack):
    with pytest.raises(UserError, match="chat template"):
        output = ChatTemplate(attack, SPECIALS).render(USER, True)
        pytest.fail(f"it wrote {output!r}")


def test_messages_cannot_be_code():
    content = "{{ 7 * 7 }}{% for x in range(3) %}x{% endfor %}"
    assert content in ChatTemplate(CHATML, {}).render([{"role": "user", "content": content}], True)


TREE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
DOUBLING = "{% set ns = namespace(s='x' * 1000) %}{% for i in range(60) %}{% set ns.s = "


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "endless",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages[0].content * 999 }}{% endfor %}",
        TREE + "{{ f(200) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{{ 'x' | indent(10 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 9999999999) }}",
        DOUBLING + "ns.s ~ ns.s %}{% endfor %}",
        DOUBLING + "ns.s + ns.s %}{% endfor %}",
        DOUBLING + "ns.s.replace('x', 'xxxx') %}{% endfor %}",
        DOUBLING + "ns.s | replace('x', 'xxxx') %}{% endfor %}",
        DOUBLING + "[ns.s, ns.s] | join %}{% endfor %}",
        DOUBLING + "ns.s.join([ns.s] * 1000) %}{% endfor %}",
        "{% set ns = namespace(l=[], s='x' * 999999) %}{% for i in range(99999) %}"
        "{% set ns.l = ns.l + [ns.s[1:]] %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}",
        "{% set x %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
        TREE + "{{ f(40) }}",
    ],
)
def test_templates_that_would_never_end_are_stopped(endless):
    with pytest.raises(UserError, match="was stopped|RecursionError|Range too big"):
        ChatTemplate(endless, SPECIALS).render(USER, True)


def test_a_stopped_template_can_be_used_again_and_long_chats_pass(monkeypatch):
    template = ChatTemplate(CHATML, {})
    long = [{"role": "user", "content": "x" * 1000}] * 2000
    assert len(template.render(long, True)) > 2_000_000
    monkeypatch.setattr(sandbox, "MAX_OUTPUT", 1000)
    with pytest.raises(UserError, match="writes more than"):
        template.render(long, True)
    assert template.render(USER, False)


def test_a_refused_system_role_is_explained():
    template = ChatTemplate(MISTRAL, SPECIALS)
    with pytest.raises(UserError, match=r"must alternate.*first user message"):
        template.render(SYSTEM, True)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "not a list of messages"),
        ("hello", "not a list of messages"),
        (["hello"], "role and content only"),
        ([{"role": "user"}], "role and content only"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "tool_calls"),
        ([{"role": "im_end", "content": "x"}], "'im_end'"),
        ([{"role": "user", "content": None}], "message 1 .* not a text"),
        ([{"role": "user", "content": [{"text": "x"}]}], "not a text"),
    ],
)
def test_malformed_messages_are_named(messages, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(CHATML, {}).render(messages, True)


def test_a_broken_or_failing_template_is_named():
    with pytest.raises(UserError, match="not valid jinja"):
        ChatTemplate("{% if %}", {})
    for failing in ("{{ 1 / 0 }}", "{{ messages[0].content.nothing() }}", "{{ 1 + 'x' }}"):
        with pytest.raises(UserError, match="chat template fails"):
            ChatTemplate(failing, {}).render(USER, True)
