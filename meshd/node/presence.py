"""This node among the candidates, and its current signed ad."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import trio

from meshd.core.ad import Ad
from meshd.core.errors import BadInput
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate
from meshd.node.advertiser import Advertiser
from meshd.node.neighbours import facts_of
from meshd.policy.feasible import Candidate
from meshd.policy.placement import PlacementView
from meshd.wire.ads import seal_ad
from meshd.wire.keys import NodeKey

log = logging.getLogger("meshd.node.presence")

FRESH_S = 1.0
"""An ad that is told within so long of its making is told again as it is: signing has its price."""


class Presence:
    """Keeps the ad and the local candidate in step with what is true."""

    def __init__(
        self,
        key: NodeKey,
        proof: Callable[[], bytes],
        certificate: Callable[[], Certificate],
        advertiser: Advertiser,
        view: PlacementView,
    ) -> None:
        self._key = key
        self._proof = proof
        self._certificate = certificate
        self._advertiser = advertiser
        self._view = view
        self._sealed = b""
        self._made_at_s = float("-inf")

    @property
    def node(self) -> NodeId:
        """This node."""
        return self._key.node

    def refresh(self) -> None:
        """Something about this node changed: a new ad, and the local candidate with it."""
        ad = self._advertiser.ad()
        self._view.put(Candidate(ad, facts_of(self._certificate()), local=True))
        self._sealed = self._seal(ad)
        self._made_at_s = trio.current_time()

    def _seal(self, ad: Ad) -> bytes:
        """The signed ad; models that do not fit into one are told to nobody, and still run here."""
        while True:
            try:
                return seal_ad(ad, self._key, self._proof())
            except BadInput as e:
                if not ad.models:
                    raise
                log.warning("%s: model %r is not advertised", e.message, ad.models[-1].name)
                ad = replace(ad, models=ad.models[:-1])

    def sealed_ad(self) -> bytes:
        """The signed ad, made anew when it is not fresh."""
        if trio.current_time() - self._made_at_s > FRESH_S:
            self.refresh()
        return self._sealed

    def candidate(self) -> Candidate:
        """This node as placement sees it."""
        self.sealed_ad()
        candidate = self._view.get(self._key.node)
        if candidate is None:
            raise RuntimeError("the local candidate is always there")
        return candidate
