"""Virtual time and the network of a simulated world: one heap of things to do, and connections that break."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshd.core.ids import NodeId

if TYPE_CHECKING:
    from meshd.testing.simnode import SimNode

DIAL_TIMEOUT_S: Final = 2.0
Todo = Callable[[], None]


class Clock:
    """Does things in order of time, and those of one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.done = 0
        self._heap: list[tuple[float, int, Todo]] = []
        self._count = 0

    def at(self, at_s: float, todo: Todo) -> None:
        """Do it at ``at_s``, never before now."""
        self._count += 1
        heapq.heappush(self._heap, (max(at_s, self.now_s), self._count, todo))

    def run(self, until_s: float) -> None:
        """Let time pass until ``until_s``."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, todo = heapq.heappop(self._heap)
            self.done += 1
            todo()
        self.now_s = until_s


@dataclass(slots=True, eq=False)
class Link:
    """A connection. What is on its way arrives in order, late if the nodes are cut apart, never once it is broken."""

    ends: tuple[NodeId, NodeId]
    alive: bool = True
    arrival_s: dict[NodeId, float] = field(default_factory=dict)
    held: list[tuple[NodeId, Todo]] = field(default_factory=list)

    def other(self, node: NodeId) -> NodeId:
        return self.ends[1] if node == self.ends[0] else self.ends[0]


class SimNet:
    """Connections between nodes, and the faults that befall them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.nodes: dict[NodeId, SimNode] = {}
        self.cut: set[NodeId] = set()
        self.sent = 0
        self._links: dict[NodeId, dict[NodeId, Link]] = {}

    def join(self, node: SimNode) -> None:
        """A node, or a node's next life."""
        self.nodes[node.me] = node
        self._links[node.me] = {}

    def flowing(self, a: NodeId, b: NodeId) -> bool:
        """Whether a cut lies between the two."""
        return (a in self.cut) == (b in self.cut)

    def latency_s(self, a: NodeId, b: NodeId) -> float:
        """One way."""
        return self.nodes[a].member.latency_s + self.nodes[b].member.latency_s

    def peers(self, node: NodeId) -> list[NodeId]:
        """Whom the node is connected with, oldest connection first."""
        return list(self._links[node])

    def connected(self, a: NodeId, b: NodeId) -> bool:
        return b in self._links[a]

    def send(self, src: NodeId, dst: NodeId, arrive: Todo) -> bool:
        """Do ``arrive`` at ``dst`` when the message gets there; whether there is a connection at all."""
        link = self._links[src].get(dst)
        if link is None:
            return False
        self.sent += 1
        at_s = max(self.clock.now_s + self.latency_s(src, dst), link.arrival_s.get(dst, 0.0))
        link.arrival_s[dst] = at_s
        self.clock.at(at_s, lambda: self._arrive(link, dst, arrive))
        return True

    def _arrive(self, link: Link, dst: NodeId, arrive: Todo) -> None:
        if not link.alive:
            return
        if link.held or not self.flowing(*link.ends):
            link.held.append((dst, arrive))
        else:
            self.nodes[dst].do(arrive)

    def dial(self, src: NodeId, dst: NodeId, done: Callable[[bool], None]) -> None:
        """Connect, then ``done(True)``; ``done(False)`` when refused, or when nobody answers in time."""
        begun_s, node = self.clock.now_s, self.nodes[src]
        there = self.nodes.get(dst)

        def answer(good: bool) -> None:
            node.do(lambda: done(good))

        def knock() -> None:
            if there is None or not there.alive or not node.alive:
                answer(False)
            elif there.frozen or not self.flowing(src, dst):
                self.clock.at(begun_s + DIAL_TIMEOUT_S, lambda: answer(False))
            else:
                self._connect(src, dst)
                answer(True)

        if self.connected(src, dst):
            done(True)
        else:
            self.clock.at(begun_s + 2 * node.member.latency_s, knock)

    def _connect(self, a: NodeId, b: NodeId) -> None:
        if b in self._links[a]:
            return
        link = Link((a, b))
        self._links[a][b] = self._links[b][a] = link
        self.nodes[a].do(lambda: self.nodes[a].peer_up(b))
        self.nodes[b].do(lambda: self.nodes[b].peer_up(a))

    def disconnect(self, a: NodeId, b: NodeId) -> None:
        """Break the connection; what is on its way is lost, both ends notice."""
        link = self._links[a].pop(b, None)
        if link is None:
            return
        self._links[b].pop(a, None)
        link.alive = False
        for end in (a, b):
            self._notice(end, link.other(end))

    def _notice(self, end: NodeId, peer: NodeId) -> None:
        node = self.nodes[end]
        self.clock.at(self.clock.now_s + node.member.latency_s, lambda: node.do(lambda: node.peer_down(peer)))

    def heal(self, nodes: set[NodeId]) -> None:
        """End the cut of ``nodes``; what was held on the way arrives."""
        self.cut -= nodes
        for node in sorted(nodes):
            for link in list(self._links[node].values()):
                if self.flowing(*link.ends):
                    held, link.held = link.held, []
                    for dst, arrive in held:
                        self.nodes[dst].do(arrive)
