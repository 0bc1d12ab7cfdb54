"""A receipt: the worker's signed account of one attempt. No prompt, no output text."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.core.ids import AttemptId, ModelDigest, NodeId


@dataclass(frozen=True, slots=True)
class Receipt:
    """``worker`` ran tokens ``first_index`` .. ``first_index + tokens - 1`` of the job for ``submitter``.

    ``request_hash`` is BLAKE2b-256 of the sealed task as received; ``output_hash`` that of the token ids produced
    (4 bytes each, big endian). Times are wall clock (s). ``finish`` is the finish or end reason.
    """

    attempt: AttemptId
    submitter: NodeId
    worker: NodeId
    model: str
    digest: ModelDigest | None
    prompt_tokens: int
    first_index: int
    tokens: int
    request_hash: bytes
    output_hash: bytes
    started_at: float
    ended_at: float
    finish: str
    certificate_serial: int
    policy_epoch: int = 0
