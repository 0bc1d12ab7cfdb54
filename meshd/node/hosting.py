"""One attempt at its worker: what it has to say, and to whom."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import trio

from meshd.core.errors import ProtocolViolation, Truncated
from meshd.core.generation import Token
from meshd.core.ids import AttemptId, NodeId
from meshd.machine import execution_events as on
from meshd.node.ports import FrameStream
from meshd.wire import frames
from meshd.wire.task import OpenedTask
from meshd.wire.tokens import size_bytes as token_size_bytes

OUTBOX_MESSAGES = 65_536
"""What one attempt may have to say and cannot, before its reader counts as gone. An answer's tokens fit."""

FRAME_TOKENS = 256
FRAME_BYTES = 32 * 1024
"""Tokens told at once, and bytes of their text: half of what a frame holds."""


@dataclass(slots=True)
class Hosting:
    """One attempt here: where its words go."""

    stream: FrameStream
    opened: OpenedTask
    writer: frames.SealedWriter
    outbox: deque[object] = field(default_factory=deque)
    news: trio.Event = field(default_factory=trio.Event)
    engine: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: bool = False
    fault: Truncated | ProtocolViolation | None = None

    @property
    def attempt(self) -> AttemptId:
        return self.opened.task.header.attempt

    @property
    def submitter(self) -> NodeId:
        return self.opened.task.header.submitter

    def say(self, message: object) -> None:
        """Queue what goes to the submitter next."""
        if len(self.outbox) < OUTBOX_MESSAGES:
            self.outbox.append(message)
        self.news.set()

    def end(self) -> None:
        """Nothing more will be said: the attempt ended, or nobody listens."""
        self.over = True
        self.news.set()

    def joined(self, said: on.SendTokens) -> tuple[Token, ...]:
        """The tokens of ``said``, just taken from the outbox, and those that wait right behind them: as many as one
        frame holds."""
        tokens, outbox = said.tokens, self.outbox
        while outbox and isinstance(after := outbox[0], on.SendTokens) and len(tokens) < FRAME_TOKENS:
            tokens += after.tokens
            outbox.popleft()
        fit = _fitting(tokens)
        if fit < len(tokens):
            outbox.appendleft(replace(said, tokens=tokens[fit:]))
        return tokens[:fit]


def _fitting(tokens: tuple[Token, ...]) -> int:
    """How many of ``tokens`` go into one frame: a piece has any length that a model's vocabulary gives it."""
    size_bytes = 0
    for at, token in enumerate(tokens[:FRAME_TOKENS]):
        size_bytes += token_size_bytes(token)
        if size_bytes > FRAME_BYTES:
            return max(at, 1)
    return min(len(tokens), FRAME_TOKENS)
