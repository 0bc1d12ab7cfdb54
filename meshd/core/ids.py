"""Identifiers: node, job, attempt. Parsed once, then trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from meshd.core.errors import BadInput

NodeId = NewType("NodeId", str)
"""A node's libp2p peer id in base58: ``12D3KooW...``. It contains the node's Ed25519 public key."""

JobId = NewType("JobId", str)
"""``job_`` and 32 lower-case hex digits."""

ModelDigest = NewType("ModelDigest", str)
"""SHA-256 of a model file: 64 lower-case hex digits."""

_NODE_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
_JOB_ID = re.compile(r"job_[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def parse_node_id(text: str) -> NodeId:
    """The node id in ``text``; BadInput when it is not one."""
    if not _NODE_ID.fullmatch(text):
        raise BadInput("not a node id", param="node")
    return NodeId(text)


def parse_job_id(text: str) -> JobId:
    """The job id in ``text``; BadInput when it is not one."""
    if not _JOB_ID.fullmatch(text):
        raise BadInput("not a job id", param="job", hint="a job id looks like job_ and 32 hex digits")
    return JobId(text)


def job_id(random: bytes) -> JobId:
    """The job id made of 16 random bytes."""
    if len(random) != 16:
        raise ValueError("a job id takes 16 random bytes")
    return JobId(f"job_{random.hex()}")


def parse_digest(text: str) -> ModelDigest:
    """The model digest in ``text``; BadInput when it is not one."""
    if not _DIGEST.fullmatch(text):
        raise BadInput("not a SHA-256 digest", param="digest")
    return ModelDigest(text)


@dataclass(frozen=True, slots=True, order=True)
class AttemptId:
    """One try of a job on one worker. ``number`` counts from 1; a later attempt fences off earlier ones."""

    job: JobId
    number: int

    def __post_init__(self) -> None:
        parse_job_id(self.job)
        if not 1 <= self.number <= 1000:
            raise BadInput("attempt number out of range", param="attempt")

    def __str__(self) -> str:
        return f"{self.job}/{self.number}"
