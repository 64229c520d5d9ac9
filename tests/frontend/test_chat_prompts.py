"""What a chat template gets of a conversation: as text or parts, with tools, developers, and a message to continue."""

from __future__ import annotations

import json
import subprocess
import sys

import jinja2
import pytest

from hpcserve.errors import BadRequest
from hpcserve.frontend.prompts.chat_template import ChatTemplate
from hpcserve.frontend.prompts.conversation import conversation_of
from hpcserve.frontend.schemas import ChatBody

TEMPLATES = {
    "{% for m in messages %}{{ m.content }}{% endfor %}": "string",
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}": "openai",
    "{% for m in messages %}{% for p in m['content'] | list %}{{ p.text }}{% endfor %}{% endfor %}": "openai",
    "{% set rest = messages[1:] %}{% for m in rest %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}": "openai",
    "{% macro show(body) %}{% for p in body %}{{ p.text }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(m.content) }}{% endfor %}": "openai",
    "{% macro show(body) %}{% for p in body %}{{ p.text }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(body=m.content) }}{% endfor %}": "openai",
    "{% macro show(content) %}{% for p in content %}{{ p }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ m.content }}{{ show(m.tool_calls) }}{% endfor %}": "string",
    "{% for m in messages %}{% set content = m.content %}{% for p in content %}p{% endfor %}{% endfor %}": "openai",
    "{% for t in tools %}{% for p in t.content %}{{ p }}{% endfor %}{% endfor %}{{ messages }}": "string",
    "{% for m in messages %}{% for c in m.tool_calls %}{{ c }}{% endfor %}{{ m.content }}{% endfor %}": "string",
}
SHOW = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
HI = {"role": "user", "content": "hi"}


def render(source: str, messages: list[dict], **fields: object) -> str:
    body = ChatBody.model_validate({"model": "m", "messages": messages, **fields})
    return conversation_of(body).render(ChatTemplate(source, {}))


@pytest.mark.parametrize(("source", "expected"), TEMPLATES.items())
def test_a_template_that_loops_over_content_gets_parts(source, expected):
    assert ChatTemplate(source, {}).content_format == expected


def test_parts_are_joined_by_lines_for_a_template_that_takes_text():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render(SHOW, [{"role": "user", "content": parts}]) == "[user:one\ntwo]A:"


def test_text_is_one_part_for_a_template_that_takes_parts():
    source = "{% for m in messages %}{{ m.content | tojson }}{% for p in m.content %}{% endfor %}{% endfor %}"
    messages = [HI, {"role": "assistant", "content": None}, {"role": "tool", "content": "21", "tool_call_id": "a"}]
    assert render(source, messages) == '[{"type": "text", "text": "hi"}][]"21"'


def test_developers_are_the_system_where_a_template_does_not_know_them():
    developer = {"role": "developer", "content": "be brief"}
    assert render(SHOW, [developer, HI]) == "[system:be brief][user:hi]A:"
    system = {"role": "system", "content": "be kind"}
    assert render(SHOW, [HI, system, developer]) == "[system:be kind\n\nbe brief][user:hi]A:"
    knowing = SHOW + "{% if 'developer' == '' %}{% endif %}"
    assert render(knowing, [developer]) == "[developer:be brief]A:"


def test_arguments_of_calls_are_objects_even_where_the_model_wrote_none():
    source = "{% for call in messages[0].tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}"
    arguments = ['{"a": 1}', "", "[1]", "{broken", "[" * 100_000]
    calls = [{"id": "x", "function": {"name": "f", "arguments": each}} for each in arguments]
    assert render(source, [{"role": "assistant", "tool_calls": calls}]) == '{"a": 1}{}{}{}{}'


def test_a_message_is_continued_where_its_text_ends():
    messages = [HI, {"role": "assistant", "content": "Well, "}]
    assert render(SHOW, messages, continue_final_message=True) == "[user:hi][assistant:Well, "
    trimming = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert render(trimming, messages, continue_final_message=True) == "[hi][Well,"
    parts = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
    assert render(parts, messages, continue_final_message=True) == "<hi><Well, "


@pytest.mark.parametrize(
    "source",
    ["{{ messages[0].content }}", "{% for m in messages %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}"],
)
def test_a_message_that_does_not_show_cannot_be_continued(source):
    messages = [HI, {"role": "assistant", "content": None}]
    with pytest.raises(BadRequest) as raised:
        render(source, messages, continue_final_message=True)
    assert raised.value.param == "continue_final_message"


def test_templates_see_documents_tools_and_how_hard_to_think():
    source = "{{ documents[0].title }}{{ tools[0] | tojson }}{{ reasoning_effort }}{{ enable_thinking }}{{ x }}"
    tool = {"type": "function", "function": {"name": "f", "strict": True}}
    fields = {"documents": [{"title": "T"}], "tools": [tool], "chat_template_kwargs": {"x": 1}}
    shown = '{"type": "function", "function": {"name": "f", "description": null, "parameters": null, "strict": true}}'
    assert render(source, [HI], reasoning_effort="high", **fields) == f"T{shown}highTrue1"
    assert render(source, [HI], reasoning_effort="none", **fields) == f"T{shown}noneFalse1"


def test_the_syntax_tree_alone_decides_about_parts():
    from hpcserve.frontend.prompts.content_format import content_format_of

    tree = jinja2.Environment().parse("{% for m in messages %}{# for p in m.content #}{{ m.content }}{% endfor %}")
    assert content_format_of(tree) == "string"


REFERENCE = """
import json, sys
from vllm.renderers.hf import _detect_content_format
print(json.dumps([_detect_content_format(each, default="string") for each in json.loads(sys.argv[1])]))
"""


@pytest.mark.real
@pytest.mark.vllm
@pytest.mark.timeout(120)
def test_vllm_decides_about_parts_as_we_do():
    """In a subprocess: what is compared with must not be imported here."""
    command = [sys.executable, "-c", REFERENCE, json.dumps(list(TEMPLATES))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == list(TEMPLATES.values())
