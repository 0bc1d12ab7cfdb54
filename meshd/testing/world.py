"""A whole mesh in virtual time: real machines, real wire codec, a heap for a clock, and faults from a seed.

    python -m meshd.testing.world --seed 7 --nodes 200 --kill 0.2

What must hold, whatever the seed: every job of a surviving node ends exactly once, with exactly the undisturbed text
(or, when no worker that may run it is left, typed); no token is lost or comes twice; an attempt is leased at most
once; nothing runs on when all is over; a dead node is gone from every view within 15 s; and when it is quiet, every
survivor sees exactly the survivors.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final

from meshd.core import limits
from meshd.core.classes import DataClass
from meshd.core.ids import NodeId
from meshd.core.job import Job
from meshd.core.trust import Certificate, Delegation
from meshd.machine import execution_events as ex
from meshd.machine import submission_events as sub
from meshd.policy.feasible import permitted
from meshd.policy.suspicion import Liveness
from meshd.testing.plan import Ask, Fault, FaultKind, Member, Settings, asks, expected, faults, members
from meshd.testing.simapp import App
from meshd.testing.simnet import Clock, SimNet
from meshd.testing.simnode import WALL_S, Shared, SimNode, Watch
from meshd.wire import frames
from meshd.wire.ads import AdJudge
from meshd.wire.keys import NodeKey
from meshd.wire.trust import issue_certificate, issue_delegation

GONE_WITHIN_S: Final = limits.AD_TTL_S + limits.CLOCK_SKEW_S + 2.0
LIFE_S: Final = 1e6


@dataclass(slots=True)
class Report:
    """What happened, and every way in which it was not as promised."""

    settings: Settings
    outcomes: Counter[str]
    problems: list[str]
    attempts: int
    reroutes: int
    messages: int
    steps: int
    trace: str

    def __str__(self) -> str:
        said = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()))
        lines = [
            f"seed {self.settings.seed}: {self.settings.nodes} nodes, {self.settings.jobs} jobs: {said}",
            f"{self.attempts} attempts, {self.reroutes} reroutes, {self.messages} messages, {self.steps} steps, "
            f"trace {self.trace}",
            *self.problems,
        ]
        if self.problems:
            lines += [f"{len(self.problems)} problems; replay: {self.settings.command()}"]
        return "\n".join(lines)


class World:
    """Built from `Settings`; `run` it once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = Clock()
        self.net = SimNet(self.clock)
        self.watch = Watch()
        root, issuer = NodeKey(b"r" * 32), NodeKey(b"i" * 32)
        judge = AdJudge(root.verify_key, lambda: WALL_S + self.clock.now_s)
        self.shared = Shared(self.clock, self.net, {}, judge, self.watch)
        self.members = members(settings)
        self.keys = [
            NodeKey(hashlib.blake2b(f"{settings.seed}/{n}".encode(), digest_size=32).digest())
            for n in range(settings.nodes)
        ]
        granted = Delegation(
            root.verify_key, issuer.verify_key, DataClass.RESTRICTED, WALL_S - LIFE_S, WALL_S + LIFE_S, 1
        )
        delegation = issue_delegation(granted, root)
        self.certificates = [_certificate(root, k, m) for k, m in zip(self.keys, self.members, strict=True)]
        self.proofs = [issue_certificate(c, issuer, delegation) for c in self.certificates]
        self.nodes: list[SimNode] = []
        self.jobs: list[tuple[Ask, App]] = []
        self.died: set[int] = set()
        self._unable: dict[str, int] = {}

    def run(self) -> Report:
        """Let it all happen, then judge."""
        for n in range(self.settings.nodes):
            self.nodes.append(self._live(n, boot=1))
        for ask in asks(self.settings):
            self.clock.at(ask.at_s, partial(self._ask, ask))
        for fault in faults(self.settings):
            self.clock.at(fault.at_s, partial(self._befall, fault))
        self.clock.run(self.settings.busy_s + self.settings.quiet_s)
        return self._report()

    # -- what happens

    def _live(self, n: int, boot: int) -> SimNode:
        node = SimNode(self.shared, self.keys[n], self.proofs[n], self.certificates[n], self.members[n], boot)
        self.net.join(node)
        node.start()
        return node

    def _ask(self, ask: Ask) -> None:
        node = self.nodes[ask.node]
        if node.alive:
            node.do(lambda: self._submit(node, ask))

    def _submit(self, node: SimNode, ask: Ask) -> None:
        app = node.submit(ask.job, self.settings.seed)
        app.on_end = partial(self._ended, app)
        self.jobs.append((ask, app))

    def _ended(self, app: App) -> None:
        """When a job fails for want of a worker, count at once who could have run it."""
        if isinstance(app.end, sub.Fail):
            self._unable[app.job.id] = sum(self._able(n, app) for n in self.nodes)

    def _able(self, node: SimNode, app: App) -> bool:
        """Whether ``node`` is up, reachable and allowed to run the job, by the world's own knowledge."""
        up = node.alive and not node.frozen and node.engine_up and self.net.flowing(node.me, app.submitter)
        will = node.me == app.submitter or not node.draining
        return up and will and node.member.shares and _permits(node, app.job)

    def _befall(self, fault: Fault) -> None:
        node = self.nodes[fault.node]
        match fault.kind:
            case FaultKind.KILL:
                self._kill(fault.node)
                if fault.for_s:
                    self.clock.at(self.clock.now_s + fault.for_s, partial(self._restart, fault.node))
            case FaultKind.FREEZE:
                node.frozen = True
                self.clock.at(self.clock.now_s + fault.for_s, node.thaw)
            case FaultKind.CUT:
                self.net.cut.add(node.me)
                self.clock.at(self.clock.now_s + fault.for_s, partial(self.net.heal, {node.me}))
            case FaultKind.CRASH:
                node.engine_up = False
                node.do(node.work.crash)
                self.clock.at(self.clock.now_s + fault.for_s, partial(setattr, node, "engine_up", True))
            case FaultKind.LEAVE:
                node.draining = True
                node.do(lambda: node.work.feed(ex.Drain(self.clock.now_s + fault.for_s)))
                node.do(node.update_self)
                self.clock.at(self.clock.now_s + fault.for_s + 0.5, partial(self._leave, fault.node))

    def _kill(self, n: int) -> None:
        node = self.nodes[n]
        self.died.add(n)
        for peer in self.net.peers(node.me):
            self.net.disconnect(node.me, peer)
        node.alive = False
        self.clock.at(self.clock.now_s + GONE_WITHIN_S, partial(self._must_be_gone, n, node))

    def _leave(self, n: int) -> None:
        node = self.nodes[n]
        for peer in self.net.peers(node.me):
            node.say(peer, frames.Bye("stopping"))
        self._kill(n)

    def _restart(self, n: int) -> None:
        self.nodes[n] = self._live(n, boot=2)

    # -- what must hold

    def _must_be_gone(self, n: int, life: SimNode) -> None:
        if self.nodes[n] is not life:
            return
        for other in self.nodes:
            if other.alive and not other.frozen and other.membership.liveness(life.me) is not Liveness.GONE:
                self._problem(f"{other.me[-4:]} still knows {life.me[-4:]}, dead for {GONE_WITHIN_S:g} s")

    def _problem(self, text: str) -> None:
        self.watch.problems.append(f"{self.clock.now_s:.3f} {text}")

    def _report(self) -> Report:
        outcomes: Counter[str] = Counter()
        trace = hashlib.blake2b(digest_size=8)
        for ask, app in self.jobs:
            outcomes[self._judge(ask, app)] += 1
            trace.update(f"{app.job.id} {app.end} {app.ended_s:.6f} {app.text}".encode())
        self._judge_rest()
        found = self.watch
        return Report(
            self.settings, outcomes, found.problems, found.attempts, found.reroutes,
            self.net.sent, self.clock.done, trace.hexdigest(),
        )  # fmt: skip

    def _judge(self, ask: Ask, app: App) -> str:
        """One word for the job's end; a problem when it is not a good one."""
        whole = expected(app.job)
        if [t.index for t in app.tokens] != list(range(len(app.tokens))):
            self._problem(f"{app.job.id}: tokens lost, doubled or out of order")
        if not whole.text.startswith(app.text):
            self._problem(f"{app.job.id}: said {app.text!r}, not {whole.text!r}")
        if not app.alive:
            return "with their submitter"
        match app.end:
            case sub.Complete(finish=finish):
                if (app.text, finish) != (whole.text, whole.finish):
                    self._problem(f"{app.job.id}: complete ({finish}) with {app.text!r}, not {whole}")
                return "complete"
            case sub.Fail(code="mesh_no_worker") if self._unable[app.job.id] == 0:
                return "failed, nobody left"
            case _:
                story = "\n    ".join(map(str, app.machine.story()[-12:]))
                able = self._unable.get(app.job.id)
                self._problem(f"{app.job.id} of node {ask.node}: {app.end}, {able} able\n    {story}")
                return "lost"

    def _judge_rest(self) -> None:
        living = {n.me for n in self.nodes if n.alive}
        for node in self.nodes:
            node.membership.check_invariants()
            if node.alive and node.execution.runs():
                self._problem(f"{node.me[-4:]} still runs {[str(r.attempt) for r in node.execution.runs()]}")
            if node.alive:
                self._judge_view(node, living)

    def _judge_view(self, node: SimNode, living: set[NodeId]) -> None:
        seen = {p.node for p in node.membership.peers() if node.membership.liveness(p.node) is Liveness.ALIVE}
        if seen | {node.me} != living:
            missing, extra = living - seen - {node.me}, seen - living
            self._problem(f"view of {node.me[-4:]}: {len(missing)} missing, {len(extra)} too many")


def _key(seed: int, n: int) -> NodeKey:
    return NodeKey(hashlib.blake2b(f"{seed}/{n}".encode(), digest_size=32).digest())


def _permits(node: SimNode, job: Job) -> bool:
    return permitted(job.constraints, node.facts) is None


def _certificate(root: NodeKey, key: NodeKey, member: Member) -> Certificate:
    return Certificate(
        org=root.verify_key,
        node=key.node,
        name=f"n{key.node[-6:]}",
        site="world",
        region=member.region,
        clearance=member.clearance,
        labels=(),
        roles=("member",),
        not_before=WALL_S - LIFE_S,
        not_after=WALL_S + LIFE_S,
        serial=1,
    )


def simulate(settings: Settings) -> Report:
    """Build a world, run it, judge it."""
    return World(settings).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run worlds from the command line; exit status 1 when one was not as promised."""
    parser = argparse.ArgumentParser(description="Run a simulated mesh and check that no job is lost.")
    parser.add_argument("--worlds", type=int, default=1, help="how many seeds, from --seed on")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args(arguments))
    worlds = given.pop("worlds")
    base = Settings(**given)
    bad = 0
    for seed in range(base.seed, base.seed + worlds):
        report = simulate(replace(base, seed=seed))
        print(report)
        bad += bool(report.problems)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
