"""Where a job goes: the feasible candidates, ranked, the choice among equals seeded by the job's own id.

`PlacementView` keeps the candidates indexed as ads come and go, so that one decision over 10,000 candidates costs
about a millisecond: per model, in groups of equal certificate facts and digest (one class and region check a
group), each group holding only nodes that take work now, in order of node id (so that a decision depends on what is
known and not on the order in which it was learnt).
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType

from meshd.core.ids import ModelDigest, NodeId
from meshd.core.job import Job, TaskKind
from meshd.policy.bans import Bans
from meshd.policy.feasible import Candidate, Facts, Infeasible, Terms, feasible, permitted, unavailable
from meshd.policy.rank import NEAR, Cost, cost_of, expected_s, work_of

_NOOP = ""
_Entry = tuple[NodeId, float, float, float, bool]
"""Node, the three parts of its `Cost`, whether it is this node itself. Flat, for the one loop over all of them."""

_GroupKey = tuple[Facts, ModelDigest, bool, Terms | None]
_Indexed = tuple[str, _GroupKey, _Entry]
_node_of = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Placement:
    """A proposal: ``worker`` should get the job, expected to take ``expected_s``; None when nobody can.

    ``reasons`` counts the candidates that cannot, by reason (filled only when there is no worker).
    ``bans_ignored``: every feasible candidate was banned, so the bans were set aside.
    """

    worker: NodeId | None
    candidates: int
    expected_s: float = 0.0
    bans_ignored: bool = False
    reasons: Mapping[Infeasible, int] = field(default_factory=dict)

    def explain(self) -> str:
        """One line for people."""
        if self.worker is not None:
            bans = ", bans set aside" if self.bans_ignored else ""
            return f"best of {self.candidates}, about {self.expected_s:.1f} s{bans}"
        if not self.reasons:
            return "no node is known"
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))


class PlacementView:
    """The candidates of this node, indexed. Not thread safe; fed by membership's changes."""

    def __init__(self, bans: Bans | None = None) -> None:
        self.bans = bans or Bans()
        self._candidates: dict[NodeId, Candidate] = {}
        self._entries: dict[NodeId, tuple[_Indexed, ...]] = {}
        self._index: dict[str, dict[_GroupKey, list[_Entry]]] = {}

    def __len__(self) -> int:
        return len(self._candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._candidates.values())

    def get(self, node: NodeId) -> Candidate | None:
        """What is known of ``node``."""
        return self._candidates.get(node)

    def put(self, candidate: Candidate) -> None:
        """Add the candidate, or replace what was known of that node. Most news change no entry, and cost little."""
        node, entries = candidate.node, _entries(candidate)
        if self._entries.get(node) != entries:
            self.remove(node)
            self._entries[node] = entries
            for model, key, entry in entries:
                insort(self._index.setdefault(model, {}).setdefault(key, []), entry, key=_node_of)
        self._candidates[node] = candidate

    def remove(self, node: NodeId) -> None:
        """Forget the node. Idempotent."""
        self._candidates.pop(node, None)
        for model, key, _ in self._entries.pop(node, ()):
            group = self._index[model][key]
            del group[bisect_left(group, node, key=_node_of)]
            if not group:
                del self._index[model][key]
            if not self._index[model]:
                del self._index[model]  # names come and go with ads: what nobody offers is not kept

    def open_to(self, job: Job, digest: ModelDigest | None) -> list[_Entry]:
        """The entries of all candidates that can run ``job``, in an order that depends on their content only."""
        groups = self._index.get(_NOOP if job.kind is TaskKind.NOOP else job.model, {})
        found: list[_Entry] = []
        for key in sorted(groups, key=_group_order):
            facts, offered, _, terms = key
            barred = terms is not None and terms.forbid(job, resumed=digest is not None) is not None
            if digest in (None, offered) and not barred and permitted(job.constraints, facts) is None:
                found.extend(groups[key])
        return found


def _group_order(key: _GroupKey) -> tuple[bool, str, int, str, str]:
    """This node itself first."""
    facts, digest, local, terms = key
    return (not local, facts.region.path, facts.clearance, digest, repr(terms))


def _entries(candidate: Candidate) -> tuple[_Indexed, ...]:
    """Where the candidate stands in the index: nowhere while it takes no work."""
    facts, local = candidate.facts, candidate.local
    if facts is None or unavailable(candidate) is not None:
        return ()
    found: dict[tuple[str, ModelDigest], _Indexed] = {}
    for offer in candidate.ad.models:
        key = (offer.name, offer.digest)
        if key not in found:
            group = (facts, offer.digest, local, Terms.of(offer))
            found[key] = (offer.name, group, (candidate.node, *cost_of(candidate, offer), local))
    noop = (_NOOP, (facts, ModelDigest(""), local, None), (candidate.node, *cost_of(candidate, None), local))
    return (noop, *found.values())


def place(
    view: PlacementView,
    job: Job,
    excluded: Collection[NodeId],
    digest: ModelDigest | None,
    now_s: float,
    warm: Mapping[NodeId, float] = MappingProxyType({}),
) -> Placement:
    """The worker that ``job`` should be offered to now, or why there is none.

    ``excluded`` nodes are never proposed. Banned ones are proposed only when every feasible candidate is banned.
    ``warm``: tokens of the prompt that a node need not compute again (see `policy.prefixes`).
    ``digest`` pins the model file once tokens of it were delivered. Equal inputs give equal decisions.
    """
    entries = view.open_to(job, digest)
    if excluded:
        entries = [e for e in entries if e[0] not in excluded]
    banned = view.bans.banned(now_s)
    allowed = [e for e in entries if e[0] not in banned] if banned else entries
    ignored = bool(entries) and not allowed
    if not entries:
        return Placement(None, len(view), reasons=_reasons(view, job, excluded, digest))
    worker, expected_s = _best(job, entries if ignored else allowed, warm)
    return Placement(worker, len(view), expected_s, ignored)


def _best(job: Job, entries: list[_Entry], warm: Mapping[NodeId, float]) -> tuple[NodeId, float]:
    """The entry expected to finish first; among near-equals the local node (it comes first), else one that the job's
    id picks."""
    work = work_of(job)
    prompt, output = work.prompt_tokens, work.output_tokens
    times_s = [fixed + prefill * prompt + generation * output for _, prefill, generation, fixed, _ in entries]
    for at, entry in enumerate(entries) if warm else ():
        times_s[at] -= entry[1] * min(warm.get(entry[0], 0.0), prompt)
    limit_s = min(times_s) * NEAR
    near = [entry for entry, time_s in zip(entries, times_s, strict=True) if time_s <= limit_s]
    held = [entry for entry in near if entry[0] in warm]
    chosen = near[0] if near[0][-1] else (held or near)[zlib.crc32(job.id.encode()) % len(held or near)]
    return chosen[0], expected_s(Cost(*chosen[1:4]), work)


def _reasons(
    view: PlacementView, job: Job, excluded: Collection[NodeId], digest: ModelDigest | None
) -> dict[Infeasible, int]:
    """Why nobody can, counted. Slower than the decision itself; only made when there is no worker."""
    return Counter(feasible(job, candidate, digest) or Infeasible.EXCLUDED for candidate in view)
