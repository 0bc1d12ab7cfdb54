"""From what the node knows to what it shows: pure functions that make views."""

from __future__ import annotations

from meshd.core.ad import Ad, ModelOffer
from meshd.core.engine import EngineStatus
from meshd.core.share import Share
from meshd.core.trust import Certificate, Organisation
from meshd.machine.membership import LIVENESS, Peer
from meshd.node.guest import limits_of
from meshd.node.views import EngineView, GpuView, MeshModelView, ModelView, NodeView, OrgView, ShareView
from meshd.policy.feasible import Candidate


def model_view(offer: ModelOffer) -> ModelView:
    """A model offer as people see it."""
    return ModelView(
        offer.name,
        offer.digest,
        offer.context_tokens,
        offer.ready,
        offer.prefill_tokens_per_s,
        offer.generation_tokens_per_s,
        tuple((rate.sequences, rate.tokens_per_s) for rate in offer.rates),
        offer.device.value,
        tuple(ability.value for ability in offer.abilities),
    )


def self_view(ad: Ad, certificate: Certificate) -> NodeView:
    """This node."""
    return _node_view(ad, certificate, "self", ad.state.value, ad.reason, 0.0, 0.0)


def peer_view(peer: Peer, certificate: Certificate | None, now_s: float) -> NodeView:
    """A peer as this node sees it; what is not known is empty."""
    talked_age_s = None if peer.talked_s is None else now_s - peer.talked_s
    heard_age_s = now_s - peer.heard_s
    liveness = LIVENESS[peer.state].value
    if peer.ad is None:
        return _unadvertised(peer, certificate, liveness, talked_age_s, heard_age_s)
    state, reason = peer.ad.state.value, peer.ad.reason
    if liveness != "alive":
        reason = peer.reason
    return _node_view(peer.ad, certificate, liveness, state, reason, talked_age_s, heard_age_s)


def _node_view(
    ad: Ad,
    certificate: Certificate | None,
    liveness: str,
    state: str,
    reason: str,
    talked_age_s: float | None,
    heard_age_s: float,
) -> NodeView:
    return NodeView(
        id=ad.node,
        name=certificate.name if certificate else ad.name,
        site=certificate.site if certificate else "",
        region=str(certificate.region) if certificate else "",
        clearance=str(certificate.clearance) if certificate else "",
        liveness=liveness,
        state=state,
        reason=reason,
        talked_age_s=talked_age_s,
        heard_age_s=heard_age_s,
        cpu_threads=ad.cpu_threads,
        memory_bytes=ad.memory_bytes,
        gpus=tuple(GpuView(g.name, g.memory_bytes, g.free_bytes) for g in ad.gpus),
        models=tuple(model_view(m) for m in ad.models),
        slots=ad.slots,
        slots_free=ad.slots_free,
        addresses=ad.addresses,
        software=ad.software,
    )


def _unadvertised(
    peer: Peer, certificate: Certificate | None, liveness: str, talked_age_s: float | None, heard_age_s: float
) -> NodeView:
    return NodeView(
        id=peer.node,
        name=certificate.name if certificate else "",
        site=certificate.site if certificate else "",
        region=str(certificate.region) if certificate else "",
        clearance=str(certificate.clearance) if certificate else "",
        liveness=liveness,
        state="unknown",
        reason=peer.reason or "no ad heard yet",
        talked_age_s=talked_age_s,
        heard_age_s=heard_age_s,
        cpu_threads=0,
        memory_bytes=0,
        gpus=(),
        models=(),
        slots=0,
        slots_free=0,
        addresses=(),
        software="",
    )


def share_view(share: Share, cpu_threads: int, *, draining: bool) -> ShareView:
    """The owner's limits and what follows from them."""
    limits = limits_of(share, cpu_threads)
    return ShareView(share.enabled, share.paused, draining, share.cpu, limits.threads, share.memory_bytes)


def org_view(org: Organisation, certificate: Certificate, *, issuer: bool) -> OrgView:
    """The organisation and this node's place in it."""
    return OrgView(
        name=org.name,
        root_key=org.root_key.hex(),
        issuer=issuer,
        certificate_serial=certificate.serial,
        certificate_not_after=certificate.not_after,
        site=certificate.site,
        region=str(certificate.region),
        clearance=str(certificate.clearance),
        roles=certificate.roles,
    )


def engine_view(status: EngineStatus) -> EngineView:
    """One engine process."""
    return EngineView(
        model=status.model,
        digest=status.digest,
        pid=status.pid,
        rss_bytes=status.rss_bytes,
        slots=status.slots,
        slots_free=status.slots_free,
        state=status.state,
        reason=status.reason,
        loaded_fraction=status.loaded_fraction,
    )


def mesh_models(candidates: list[Candidate], names: dict[str, str]) -> tuple[MeshModelView, ...]:
    """Every model that some node offers, by name and digest; ``names`` tells the nodes' names by id."""
    found: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        for offer in candidate.ad.models:
            found.setdefault((offer.name, offer.digest), []).append(candidate)
    return tuple(_mesh_model(name, digest, at, names) for (name, digest), at in sorted(found.items()))


def _mesh_model(name: str, digest: str, at: list[Candidate], names: dict[str, str]) -> MeshModelView:
    offers = [(c, m) for c in at for m in c.ad.models if (m.name, m.digest) == (name, digest)]
    return MeshModelView(
        name,
        digest,
        max(m.context_tokens for _, m in offers),
        nodes=tuple(sorted(names.get(c.node, c.node) for c in at)),
        local=any(c.local for c in at),
        ready=tuple(sorted(names.get(c.node, c.node) for c, m in offers if m.ready)),
        abilities=tuple(sorted({ability.value for _, m in offers for ability in m.abilities})),
    )
