"""Addresses, digests and keys of upstreams."""

from __future__ import annotations

import pytest

from meshd.core.errors import BadInput
from meshd.core.upstream import Upstream, normal_url, upstream_digest


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        (" HTTPS://LLM.Example:443/v1/ ", "https://llm.example/v1"),
        ("http://rack-3:80//openai//v1", "http://rack-3/openai/v1"),
        ("http://[::1]:11434/v1", "http://[::1]:11434/v1"),
        ("https://llm.example/v1beta/openai/", "https://llm.example/v1beta/openai"),
    ],
)
def test_an_address_has_one_spelling(text: str, normal: str) -> None:
    assert normal_url(text) == normal == normal_url(normal)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "llm.example",
        "ftp://llm.example",
        "http://",
        "http://user:secret@llm.example/v1",
        "http://llm.example/v1?key=secret",
        "http://llm.example/v1#x",
        "http://llm.example:0/v1",
        "http://llm.example:65536/v1",
        "http://llm.example/v1/../admin",
        "http://llm.example/a b",
        "http://llm.example/v1\r\nHost: other",
        "http://" + "a" * 300,
    ],
)
def test_what_is_no_plain_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        normal_url(text)
    assert refused.value.param == "url"


def test_the_digest_is_that_of_server_and_name_there_and_of_nothing_else() -> None:
    here = Upstream("fast", "http://rack/v1", "big", slots=2, key="secret")
    there = Upstream("other-name", normal_url("http://RACK:80"), "big", slots=9)
    assert here.digest == there.digest == upstream_digest("http://rack/v1", "big")
    assert (
        len({here.digest, upstream_digest("http://rack/v1", "bigger"), upstream_digest("http://rack2/v1", "big")}) == 3
    )


def test_a_key_is_shown_nowhere() -> None:
    assert "secret" not in repr(Upstream("n", "http://rack/v1", "m", key="secret"))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": ""}, "name"),
        ({"model": "x" * 201}, "model"),
        ({"name": "a\x1b[2J"}, "name"),
        ({"url": "http://RACK/v1"}, "url"),
        ({"slots": 0}, "slots"),
        ({"context_tokens": -1}, "context_tokens"),
        ({"key": "two words"}, "key"),
        ({"key": "line\nHost: other"}, "key"),
        ({"key": "x" * 5000}, "key"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], param: str) -> None:
    with pytest.raises(BadInput) as refused:
        Upstream(**{"name": "n", "url": "http://rack/v1", "model": "m", **changes})  # type: ignore[arg-type]
    assert refused.value.param == param
