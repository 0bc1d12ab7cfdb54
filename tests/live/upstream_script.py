"""A scripted server in a thread of its own, for daemons that are processes: it counts, word by word, and goes on
counting from what an assistant's last message holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from tests.engine.scripted_server import CHAT, Asked, Scripted, scripted

PAUSE_S = 0.02
"""Between two words: an answer of some hundred lasts long enough to be disturbed."""


def counted(first: int, end: int) -> str:
    """The words from ``first`` on, below ``end``."""
    return "".join(f"w{n} " for n in range(first, end))


class Counting:
    """``break_at``: the next answer ends there without an end; ``mute``: the connection breaks at once."""

    def __init__(self) -> None:
        self.server = Scripted()
        self.break_at: int | None = None
        self.answers: list[list[dict[str, Any]]] = []
        self.server.script[CHAT] = self._chat

    async def _chat(self, asked: Asked) -> None:
        if not asked.body.get("stream") or "seed" not in asked.body:  # a question about what it can do
            await self.server.behave(asked)
            return
        messages = asked.body["messages"]
        self.answers.append(messages)
        said = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        await asked.begin()
        limit = int(asked.body["max_tokens"])
        for n in range(len(said.split()), len(said.split()) + limit):
            if n == self.break_at:
                self.break_at = None
                return
            await asked.say(f"w{n} ")
            await trio.sleep(PAUSE_S)
        await asked.end("length", {"prompt_tokens": 12, "completion_tokens": limit})


@contextmanager
def counting_server() -> Iterator[Counting]:
    """The server, while in the context."""
    counting, up, over = Counting(), threading.Event(), trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        async with scripted(counting.server):
            tokens.append(trio.lowlevel.current_trio_token())
            up.set()
            await over.wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert up.wait(10)
    try:
        yield counting
    finally:
        tokens[0].run_sync_soon(over.set)
        thread.join(10)
