"""Which candidates *can* run a job, and the one word that says why the others cannot. Fails closed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.core.ad import Ability, Ad, ModelOffer, OfferState
from meshd.core.classes import DataClass, Region
from meshd.core.ids import ModelDigest, NodeId
from meshd.core.job import Constraints, Job, TaskKind
from meshd.policy.suspicion import Liveness


@dataclass(frozen=True, slots=True)
class Facts:
    """What the organisation's certificate attests about a node. An ad can claim neither."""

    region: Region
    clearance: DataClass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that might run a job. ``facts`` None: no certificate known, so it may run nothing.
    ``local``: this very node, which serves its own apps whether it shares or not."""

    ad: Ad
    facts: Facts | None
    liveness: Liveness = Liveness.ALIVE
    local: bool = False

    @property
    def node(self) -> NodeId:
        return self.ad.node


class Infeasible(StrEnum):
    """Why a candidate cannot run a job."""

    NO_MODEL = "no_model"
    NO_ABILITY = "no_ability"
    OTHER_DIGEST = "other_digest"
    NO_CERTIFICATE = "no_certificate"
    CLEARANCE = "clearance"
    REGION = "region"
    SUSPECT = "suspect"
    NOT_SHARING = "not_sharing"
    PAUSED = "paused"
    DRAINING = "draining"
    BUSY = "busy"
    EXCLUDED = "excluded"


_CLOSED = {
    OfferState.NOT_SHARING: Infeasible.NOT_SHARING,
    OfferState.PAUSED: Infeasible.PAUSED,
    OfferState.DRAINING: Infeasible.DRAINING,
    OfferState.BUSY: Infeasible.BUSY,
}


def permitted(constraints: Constraints, facts: Facts | None) -> Infeasible | None:
    """Why data class or region forbid the node; None when both allow it. Without facts nothing is allowed."""
    if facts is None:
        return Infeasible.NO_CERTIFICATE
    if facts.clearance < constraints.data_class:
        return Infeasible.CLEARANCE
    if constraints.regions and not any(r.admits(facts.region) for r in constraints.regions):
        return Infeasible.REGION
    return None


def unavailable(candidate: Candidate) -> Infeasible | None:
    """Why the node takes no job at all now; None when it does. Its own apps may always use the local node."""
    if candidate.liveness is not Liveness.ALIVE:
        return Infeasible.SUSPECT
    if candidate.ad.state in _CLOSED and not candidate.local:
        return _CLOSED[candidate.ad.state]
    return None if candidate.ad.slots_free > 0 else Infeasible.BUSY


_ABILITY = {TaskKind.GENERATE: Ability.GENERATE, TaskKind.EMBED: Ability.EMBED, TaskKind.TOKENIZE: Ability.TOKENIZE}


@dataclass(frozen=True, slots=True)
class Terms:
    """What an offered model can be asked for, and up to which data class."""

    abilities: tuple[Ability, ...]
    class_max: DataClass

    @classmethod
    def of(cls, offer: ModelOffer) -> Terms:
        """Those of ``offer``."""
        return cls(offer.abilities, offer.class_max)

    def forbid(self, job: Job, *, resumed: bool) -> Infeasible | None:
        """Why a model on these terms cannot take ``job`` (``resumed``: tokens of it were delivered already)."""
        if _ABILITY[job.kind] not in self.abilities or (resumed and Ability.RESUME not in self.abilities):
            return Infeasible.NO_ABILITY
        return Infeasible.CLEARANCE if job.constraints.data_class > self.class_max else None


def lacks_model(job: Job, ad: Ad, digest: ModelDigest | None) -> Infeasible | None:
    """Why the node cannot serve the job's model (of that digest, once pinned); None when it can."""
    if job.kind is TaskKind.NOOP:
        return None
    offer = offer_for(job, ad, digest)
    if offer is not None:
        return Terms.of(offer).forbid(job, resumed=digest is not None)
    return Infeasible.NO_MODEL if ad.model(job.model) is None else Infeasible.OTHER_DIGEST


def offer_for(job: Job, ad: Ad, digest: ModelDigest | None) -> ModelOffer | None:
    """The model offer that the job would use; None for a no-op or when there is none."""
    return None if job.kind is TaskKind.NOOP else ad.model(job.model, digest)


def feasible(job: Job, candidate: Candidate, digest: ModelDigest | None = None) -> Infeasible | None:
    """Why ``candidate`` cannot run ``job`` (pinned to ``digest``, if given); None when it can.

    What never changes comes first, so that the reason told is the one worth acting on.
    """
    return (
        lacks_model(job, candidate.ad, digest) or permitted(job.constraints, candidate.facts) or unavailable(candidate)
    )
