"""Chat templates: the model's own in a sandbox with bounds, and the plain one."""

from __future__ import annotations

import pytest

from meshd.core.chat import Message, ToolCall
from meshd.core.errors import BadInput
from meshd.engine.prompt import ChatTemplate, plain_chat, turns_of

HELLO = (Message("user", "hello"),)


def test_the_plain_form_puts_system_text_first() -> None:
    messages = (Message("user", "a"), Message("system", "Be kind."), Message("assistant", "b"), Message("user", "c"))
    assert plain_chat(messages) == "Be kind.\n\nUser: a\nAssistant: b\nUser: c\nAssistant:"
    assert plain_chat(HELLO) == "User: hello\nAssistant:"


def test_a_template_sees_messages_tokens_and_the_generation_prompt() -> None:
    source = "{{ bos_token }}{% for m in messages %}\n[{{ m['role'] }}]{{ m.content }}{% endfor %}{{ eos_token }}{% if add_generation_prompt %}!{% endif %}"  # noqa: E501
    messages = (Message("developer", "d"), Message("user", "u"))
    assert ChatTemplate(source, "<s>", "</s>").render(turns_of(messages)) == "<s>[system]d[user]u</s>!"


def test_arguments_nested_beyond_reason_are_told_as_text() -> None:
    """They come from other machines; what Python can parse it cannot always walk."""
    for depth in (600, 900, 5000):
        arguments = '{"a":' + "[" * depth + "]" * depth + "}"
        (turn,) = turns_of((Message("assistant", "", (ToolCall("1", "f", arguments),)),))
        assert isinstance(turn["tool_calls"][0]["function"]["arguments"], str | dict)
    assert turn["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role') }}",
        "{{ messages[99].content.x }}",
        "{{ 1 / 0 }}",
        "{{ nothing() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(100000000) %}x{% endfor %}",
        "{% set x = messages.append(1) %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'xxxxxxxx' * 10 }}{% endfor %}{% endfor %}",
    ],
)
def test_a_refusing_or_hostile_template_is_bad_input(source: str) -> None:
    template = ChatTemplate(source, "", "")
    with pytest.raises(BadInput):
        template.render(turns_of(HELLO))


def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.engine.prompt.RENDER_TIMEOUT_S", 0.1)
    template = ChatTemplate("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "", "")
    with pytest.raises(BadInput, match="too long"):
        template.render(turns_of(HELLO))


def test_a_template_that_does_not_parse_is_bad_input() -> None:
    with pytest.raises(BadInput):
        ChatTemplate("{% for %}", "", "")
