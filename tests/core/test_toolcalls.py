"""Calls of tools are read out of an answer's text, whichever way it was cut, and nothing of it is lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.core.toolcalls import CallArguments, CallBegun, CallBroken, CallEnded, CallReader, Said
from meshd.core.toolsyntax import HERMES, LLAMA3, MISTRAL, SYNTAXES, ToolSyntax

NAMES = ("weather", "ti.me")


class Read:
    """What an app makes of the events: text, and calls by number."""

    def __init__(self, syntax: ToolSyntax, pieces: Iterable[str], *, cut: bool = False) -> None:
        self.text = ""
        self.calls: dict[int, list[str]] = {}
        self.ended: list[int] = []
        reader = CallReader(syntax, NAMES)
        for piece in pieces:
            self._take(reader.feed(piece))
        self._take(reader.finish(cut=cut))
        self.whole, self.cut = reader.whole, reader.cut
        assert len(self.ended) == self.whole

    def _take(self, events: Iterable[object]) -> None:
        for event in events:
            match event:
                case Said(text):
                    assert text
                    self.text += text
                case CallBegun(index, name):
                    assert index not in self.calls
                    self.calls[index] = [name, ""]
                case CallArguments(index, text):
                    assert index not in self.ended and text
                    self.calls[index][1] += text
                case CallEnded(index):
                    self.ended.append(index)
                case CallBroken(index):
                    del self.calls[index]

    @property
    def told(self) -> tuple[object, ...]:
        return self.text, tuple((i, *c) for i, c in self.calls.items()), tuple(self.ended), self.cut


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ARGUMENTS = '{"city" : "Z\\u00fcrich \\"}]", "days": [1, {"a": null}] }'

GOOD: list[tuple[ToolSyntax, str, str, list[tuple[str, str]]]] = [
    (HERMES, hermes("weather", ARGUMENTS), "", [("weather", ARGUMENTS)]),
    (HERMES, f"\n\n{hermes('weather', '{}')}\n{hermes('ti.me', '{}')}\n", "", [("weather", "{}"), ("ti.me", "{}")]),
    (HERMES, f"I look.{hermes('weather', '{}')} Done.", "I look. Done.", [("weather", "{}")]),
    (HERMES, '<tool_call>{"arguments": {"a":1}, "name": "weather"}</tool_call>', "", [("weather", '{"a":1}')]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {}}', "", [("weather", "{}")]),
    (HERMES, f"<tool_ca {hermes('weather', '{}')}", "<tool_ca ", [("weather", "{}")]),
    (HERMES, f"<<tool_call><{hermes('weather', '{}')}", "<<tool_call><", [("weather", "{}")]),
    (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {}}]', "", [("weather", "{}")]),
    (
        MISTRAL,
        f'Hm.[TOOL_CALLS][{{"name":"weather","arguments":{ARGUMENTS}}} , {{"name":"ti.me","arguments":{{}},"id":"a"}}]',
        "Hm.",
        [("weather", ARGUMENTS), ("ti.me", "{}")],
    ),
    (LLAMA3, f'{{"name": "weather", "parameters": {ARGUMENTS}}}', "", [("weather", ARGUMENTS)]),
    (LLAMA3, '\n{"type": "function", "name": "weather", "parameters": {}}\n', "", [("weather", "{}")]),
    (LLAMA3, '{"name": "weather", "parameters": {}}; more', "; more", [("weather", "{}")]),
]


@pytest.mark.parametrize(("syntax", "answer", "text", "calls"), GOOD)
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_calls_are_read(syntax: ToolSyntax, answer: str, text: str, calls: list[tuple[str, str]], size: int) -> None:
    read = Read(syntax, [answer[i : i + size] for i in range(0, len(answer), size)])
    assert (read.text, [tuple(call) for call in read.calls.values()]) == (text, calls)
    assert read.whole == len(calls) and not read.cut
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)


NO_CALLS: list[tuple[ToolSyntax, str]] = [
    (HERMES, "just text, with { and <tool_call"),
    (HERMES, " \n"),
    (HERMES, ""),
    (HERMES, "<tool_call>"),
    (HERMES, "<tool_call>weather()</tool_call>"),
    (HERMES, hermes("unknown", "{}")),
    (HERMES, hermes("weather", '"{}"')),
    (HERMES, hermes("weather", "{'a': 1}")),
    (HERMES, hermes("weather", '{"a": NaN}')),
    (HERMES, hermes("weather", '{"a": [1}}')),
    (HERMES, hermes("weather", "[" * 100 + "]" * 100)),
    (HERMES, hermes("weather", '{"a": ' + "[" * 100 + "]" * 100 + "}")),
    (HERMES, '<tool_call>{"name": "weather"}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "name": "weather", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"a": "never ends'),
    (HERMES, '<tool_call>{"' + "x" * 1000),
    (MISTRAL, '[TOOL_CALLS] {"name": "weather", "arguments": {}}'),
    (MISTRAL, "[TOOL_CALLS] "),
    (MISTRAL, "[TOOL_CALLS][]"),
    (LLAMA3, '{"title": "a document", "name": "weather", "parameters": {}}'),
    (LLAMA3, 'Call {"name": "weather", "parameters": {}}'),
    (LLAMA3, "{"),
    (LLAMA3, '\t{"name": "weather", "arguments": {}}'),
]


@pytest.mark.parametrize(("syntax", "answer"), NO_CALLS)
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_what_is_no_call_is_plain_text_to_the_letter(syntax: ToolSyntax, answer: str, size: int) -> None:
    read = Read(syntax, [answer[i : i + size] for i in range(0, len(answer), size)])
    assert (read.text, read.calls, read.whole) == (answer, {}, 0)


def test_text_is_held_back_only_while_it_may_become_a_call() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.feed("Hello") == [Said("Hello")]
    assert reader.feed(" <tool") == [Said(" ")]
    assert reader.feed("box>") == [Said("<toolbox>")]
    assert CallReader(LLAMA3, NAMES).feed("Hello") == [Said("Hello")]


def test_arguments_are_told_as_they_come() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.feed('<tool_call>{"name": "weather", "arguments": ') == []
    assert reader.feed('{"a') == [CallBegun(0, "weather"), CallArguments(0, '{"a')]
    assert reader.feed('": 1}') == [CallArguments(0, '": 1}')]
    assert reader.feed("}") == [CallEnded(0)]


def test_an_answer_cut_inside_a_call_keeps_what_came_of_it() -> None:
    second = '<tool_call>{"name": "ti.me", "arguments": {"zone'
    read = Read(HERMES, [hermes("weather", "{}"), second], cut=True)
    assert (read.cut, read.whole, read.text) == (True, 1, "")
    assert read.calls == {0: ["weather", "{}"], 1: ["ti.me", '{"zone']}
    assert Read(HERMES, [hermes("weather", "{}") + second]).text == second
    unnamed = Read(HERMES, ['<tool_call>{"na'], cut=True)
    assert (unnamed.cut, unnamed.text) == (False, '<tool_call>{"na')


def test_calls_without_end_stay_bounded() -> None:
    read = Read(HERMES, [hermes("weather", "{}") * 500])
    assert read.whole == 128 and read.text == hermes("weather", "{}") * (500 - 128)


def test_a_call_that_breaks_is_numbered_alike_in_one_piece_and_in_many() -> None:
    answer = hermes("weather", "{x}") + hermes("weather", "{}")
    assert Read(HERMES, [answer]).told == Read(HERMES, answer).told
    assert list(Read(HERMES, [answer]).calls) == [1]
    assert list(Read(HERMES, ['<tool_call>{"name": "weather", "parameters": ', hermes("weather", "{}")]).calls) == [0]


ALPHABET = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", '{"name": "weather", "arguments": {"a": 1}}', '"arguments": {',
        '{"name": "weather", "parameters": {}}', '{"name": "weather", ', '"parameters": {', "{", "}", "[", "]", ",",
        " ", "\n", '"', "\\", "<", "x", "é", "1", ":", '"name"', '"weather"',
    ]
)  # fmt: skip


@given(st.sampled_from(SYNTAXES), st.lists(ALPHABET, max_size=14).map("".join), st.booleans(), st.data())
def test_any_way_to_cut_the_text_gives_the_same(
    syntax: ToolSyntax, answer: str, cut: bool, data: st.DataObject
) -> None:
    whole = Read(syntax, [answer], cut=cut)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert Read(syntax, pieces, cut=cut).told == whole.told == Read(syntax, answer, cut=cut).told
    for index in whole.ended:
        assert isinstance(json.loads(whole.calls[index][1]), dict)
    if not whole.calls:
        assert whole.text == answer


JSON_OBJECT: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.integers() | st.text(max_size=9) | st.lists(st.booleans(), max_size=3),
    max_size=4,
)


@given(st.sampled_from(SYNTAXES), st.lists(JSON_OBJECT, min_size=1, max_size=3), st.integers(1, 9), st.booleans())
def test_whatever_is_called_with_arrives_as_it_was_written(
    syntax: ToolSyntax, wanted: list[dict[str, Any]], size: int, ascii_only: bool
) -> None:
    texts = [json.dumps(arguments, ensure_ascii=ascii_only) for arguments in wanted]
    calls = [f'{{"name": "weather", "{syntax.arguments_key}": {text}}}' for text in texts]
    answer = "".join(f"{syntax.opener}{call}{syntax.closer}" for call in calls)
    if syntax is MISTRAL:
        answer = f"{syntax.opener}[{', '.join(calls)}]"
    if syntax is LLAMA3:
        answer, texts = calls[0], texts[:1]
    read = Read(syntax, [answer[i : i + size] for i in range(0, len(answer), size)])
    assert [call[1] for call in read.calls.values()] == texts and read.text == ""


def test_what_looks_like_half_a_closer_at_the_end_is_text() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}'
    assert Read(HERMES, [call + "</tool"]).text == "</tool"
    assert Read(HERMES, [call + "</tool"], cut=True).text == "", "there it was cut"
