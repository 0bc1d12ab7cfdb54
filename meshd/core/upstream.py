"""The words of upstreams: OpenAI-compatible servers that a node stands in front of."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from meshd.core.ad import Ability
from meshd.core.classes import DataClass
from meshd.core.errors import BadInput
from meshd.core.ids import ModelDigest, parse_digest

DOMAIN: Final = b"meshd/upstream/1"
"""So that no file's digest is ever that of an upstream's model."""

MAX_KEY_CHARS: Final = 4096
"""Bearer tokens that are signed statements have some hundred characters; a header has room for a few thousand."""

MAX_SLOTS: Final = 256
"""Answers at once through one upstream: as many as an engine may have."""

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9._~/-]{0,200})?",
    re.IGNORECASE,
)
_USUAL_PORT: Final = {"http": 80, "https": 443}


def normal_url(text: str) -> str:
    """The base address of a server in its one spelling: ``https://host:port/v1``, no trailing slash.

    Without a path it is the usual ``/v1``. Raises BadInput: no address of http or https, or one that holds a name
    and password, a query or a fragment.
    """
    found = _URL.fullmatch(text.strip())
    if found is None or ".." in (found["path"] or ""):
        raise BadInput(
            "not the address of an HTTP server",
            param="url",
            hint="like http://127.0.0.1:8000/v1; a key goes into --key-file, never into the address",
        )
    scheme, host = found["scheme"].lower(), found["host"].lower()
    port = int(found["port"]) if found["port"] else _USUAL_PORT[scheme]
    if not 0 < port < 65536:
        raise BadInput("no such port", param="url")
    shown_port = "" if port == _USUAL_PORT[scheme] else f":{port}"
    path = re.sub(r"/+", "/", found["path"] or "").rstrip("/")
    return f"{scheme}://{host}{shown_port}{path or '/v1'}"


def upstream_digest(url: str, model: str) -> ModelDigest:
    """What stands for the model's bytes, which nobody here has: the same server (normalised ``url``) and the same
    name there are taken for the same model, whichever node asks."""
    parts = (DOMAIN, url.encode(), model.encode())
    return ModelDigest(hashlib.sha256(b"\x00".join(parts)).hexdigest())


def _check_name(text: str, param: str) -> None:
    if not 1 <= len(text) <= 200 or not text.isprintable():
        raise BadInput(f"{param} has 1 to 200 printable characters", param=param)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model of an OpenAI-compatible server, offered by this node as ``name``. ``model``: its name there.

    ``class_max``: the highest data class that may leave for it. ``slots``: answers at once. ``context_tokens`` 0: as
    the server says, or unknown. ``key``: its bearer token, empty for none; a secret, so no repr shows it.
    """

    name: str
    url: str
    model: str
    class_max: DataClass = DataClass.INTERNAL
    slots: int = 16
    context_tokens: int = 0
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        _check_name(self.name, "name")
        _check_name(self.model, "model")
        if self.url != normal_url(self.url):
            raise BadInput("the address is not in its normal form", param="url")
        if not 1 <= self.slots <= MAX_SLOTS:
            raise BadInput(f"slots must be between 1 and {MAX_SLOTS}", param="slots")
        if not 0 <= self.context_tokens <= 2**30:
            raise BadInput("context_tokens must be between 0 and 2^30", param="context_tokens")
        if len(self.key) > MAX_KEY_CHARS or not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
            raise BadInput("a key is printable ASCII without blanks", param="key")

    @property
    def digest(self) -> ModelDigest:
        """See `upstream_digest`."""
        return parse_digest(upstream_digest(self.url, self.model))


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a server showed that it can do. Whatever is not proven is not claimed.

    ``abilities`` without RESUME: an answer that broke off can only begin anew. ``chat``, ``text``: which prompts it
    takes. ``continue_field``: a last message of the assistant is continued only when the request says so by name.
    ``extras``: fields beyond OpenAI's that it takes. ``schema_field``: how a schema that binds the answer is given
    (``json_schema``, ``json_object``; empty: not at all). ``limit_field``: what max_tokens is called there.
    ``usage``: a stream may be asked for token counts.
    """

    abilities: tuple[Ability, ...]
    context_tokens: int = 0
    chat: bool = False
    text: bool = False
    continue_field: bool = False
    extras: tuple[str, ...] = ()
    schema_field: str = ""
    limit_field: str = "max_tokens"
    usage: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """One upstream now. ``state``: ready, resting (it failed and is asked again later) or loading (not asked yet);
    ``reason`` says why, in words. ``learnt`` None: nothing is known yet."""

    upstream: Upstream
    state: str
    reason: str
    slots_free: int
    context_tokens: int
    generation_tokens_per_s: float
    learnt: Learnt | None
