"""The upstreams of this node: registered on disk, opened at the engine, and what people may see of them."""

from __future__ import annotations

from collections.abc import Callable

import trio

from meshd.core import limits
from meshd.core.errors import AlreadyDone, Overloaded
from meshd.core.ids import ModelDigest
from meshd.core.upstream import Upstream, UpstreamStatus
from meshd.node.ports import Upstreams
from meshd.node.stores import UpstreamStore
from meshd.node.views import UpstreamView


class UpstreamDesk:
    """Adds, lists and removes upstreams. ``taken``: names that models of this node have already."""

    def __init__(self, store: UpstreamStore, upstreams: Upstreams, taken: Callable[[], set[str]]) -> None:
        self._store = store
        self._upstreams = upstreams
        self._taken = taken
        self._adding = trio.Lock()

    async def open_all(self) -> None:
        """Stand in front of every registered server; each is offered once it was asked and answered."""
        for upstream in await self._store.list():
            self._upstreams.open(upstream)

    def names(self) -> set[str]:
        """The names under which upstreams are registered here."""
        return {status.upstream.name for status in self._upstreams.statuses()}

    def check_free(self, name: str) -> None:
        """Raise AlreadyDone when an upstream is offered under that name."""
        if any(status.upstream.name == name for status in self._upstreams.statuses()):
            raise AlreadyDone(
                f"an upstream is offered here as {name}", hint="choose another --name, or remove it first"
            )

    def views(self) -> tuple[UpstreamView, ...]:
        """Each of them, by name."""
        return tuple(sorted((view_of(status) for status in self._upstreams.statuses()), key=lambda v: v.name))

    async def add(self, upstream: Upstream) -> UpstreamView:
        """Ask the server what it can do, and offer it from now on.

        Raises BadInput (address, key or model are wrong), Unreachable, Overloaded, AlreadyDone.
        """
        async with self._adding:
            self._check_new(upstream)
            learnt = await self._upstreams.learn(upstream)
            self._check_new(upstream)  # a file may have taken the name meanwhile
            await self._store.add(upstream)
            return view_of(self._upstreams.open(upstream, learnt))

    def _check_new(self, upstream: Upstream) -> None:
        self.check_free(upstream.name)
        if upstream.name in self._taken():
            hint = "choose another --name, or remove the other first"
            raise AlreadyDone(f"another model is offered here as {upstream.name}", hint=hint)
        present = [status.upstream for status in self._upstreams.statuses()]
        same = next((u.name for u in present if u.digest == upstream.digest), None)
        if same is not None:
            raise AlreadyDone(f"that model of that server is offered here already, as {same}")
        if len(present) + len(self._taken()) >= limits.MAX_MODELS_PER_AD:
            raise Overloaded(f"a node offers at most {limits.MAX_MODELS_PER_AD} models", retry_after_s=60)

    async def remove(self, name: str) -> ModelDigest:
        """Forget the upstream and its key. Raises NotFound."""
        upstream = await self._store.remove(name)
        self._upstreams.close(upstream.digest)
        return upstream.digest


def view_of(status: UpstreamStatus) -> UpstreamView:
    """An upstream as people see it: whether there is a key, and never the key."""
    upstream, learnt = status.upstream, status.learnt
    return UpstreamView(
        name=upstream.name,
        url=upstream.url,
        model=upstream.model,
        digest=upstream.digest,
        class_max=str(upstream.class_max),
        has_key=bool(upstream.key),
        slots=upstream.slots,
        slots_free=status.slots_free,
        context_tokens=status.context_tokens,
        state=status.state,
        reason=status.reason,
        generation_tokens_per_s=status.generation_tokens_per_s,
        abilities=tuple(ability.value for ability in learnt.abilities) if learnt is not None else (),
        prompts=tuple(w for w, there in (("chat", learnt.chat), ("text", learnt.text)) if there) if learnt else (),
        formats=bool(learnt and learnt.schema_field),
    )
