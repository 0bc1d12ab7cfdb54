"""Texts that are kept apart from a template's own, whatever the template does with them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from meshd.core.chat import Message, Tool, ToolCall
from meshd.engine.marking import Marks
from meshd.engine.prompt import ChatTemplate, tools_of, turns_of

texts = st.lists(st.text(max_size=12) | st.text("\ue000\ue0010:", max_size=8), min_size=1, max_size=6)


@given(texts)
def test_marks_come_back_as_the_texts_they_stand_for(people: list[str]) -> None:
    marks = Marks(people)
    rendered = "".join(f"<own {marks.place(text)}>" for text in people)
    parts = marks.split(rendered)
    assert "".join(part for part, _ in parts) == "".join(f"<own {text}>" for text in people)
    assert "".join(part for part, own in parts if not own) == "".join(people)


@given(texts, st.integers(0, 3))
def test_a_text_inside_json_inside_json_is_escaped_as_often(people: list[str], depth: int) -> None:
    marks = Marks(people)
    expected, marked = "|".join(people), "|".join(marks.place(text) for text in people)
    for _ in range(depth):
        expected = json.dumps([expected], ensure_ascii=False)
        marked = marks.deeper(json.dumps([marked], ensure_ascii=False))
    assert "".join(part for part, _ in marks.split(marked)) == expected


def test_a_template_sees_calls_tools_and_results() -> None:
    source = (
        "{% for t in tools %}{{ t.function.name }}={{ t.function.parameters | tojson(indent=None) }};{% endfor %}"
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}:{{ c.type }}:{{ c.function.name }}"
        "{% for k, v in c.function.arguments.items() %}<{{ k }}={{ v }}>{% endfor %}{% endfor %}"
        "{{ m.content }}{{ m.tool_call_id }}{{ m.name }}|{% endfor %}"
    )
    messages = (
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("c1", "look", '{"a": 1, "b": ["x"]}'),)),
        Message("tool", "seen", call_id="c1", name="look"),
    )
    rendered = ChatTemplate(source, "", "").render(
        turns_of(messages), tools_of([Tool("look", "", '{"type": "object"}')])
    )
    assert rendered == 'look={"type": "object"};hi|c1:function:look<a=1><b=[\'x\']>|seenc1look|'


def test_arguments_that_are_no_object_stay_as_they_were_written() -> None:
    source = "{% for m in messages %}{{ m.tool_calls[0].function.arguments }}|{% endfor %}"
    odd = ("{broken", "5", '"x"')
    turns = turns_of([Message("assistant", "", (ToolCall("c", "f", arguments),)) for arguments in odd])
    assert ChatTemplate(source, "", "").render(turns) == '{broken|5|"x"|'


def test_without_tools_a_template_finds_none() -> None:
    source = "{% if tools is none %}none{% endif %}{% if messages[0].tool_calls is defined %}calls{% endif %}"
    assert ChatTemplate(source, "", "").render(turns_of([Message("user", "x")]), tools_of(())) == "none"
