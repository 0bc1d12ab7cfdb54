"""Every size and time bound that two parts must agree on, with its reason.

What an owner or admin may tune is in ``configs/default.toml``; what is here is part of the protocol.
"""

from typing import Final

MAX_CERTIFICATE_BYTES: Final = 4096
"""A certificate with its issuer's delegation is under 1 KiB; more is an attack."""

MAX_AD_BYTES: Final = 12 * 1024
"""24 models of 400 bytes and the rest; DHT values stay well under libp2p's message bound."""

MAX_CONTROL_FRAME_BYTES: Final = 384 * 1024
"""A hello with 24 gossiped ads of full size and room."""

MAX_TASK_BYTES: Final = 4 * 1024 * 1024
"""Header and sealed body: a prompt of a million tokens' text."""

MAX_TASK_FRAME_BYTES: Final = 64 * 1024
"""A data, heartbeat or end frame of a running attempt: tokens come a few at a time."""

MAX_ENROL_BYTES: Final = 8192
"""Either message of the enrolment exchange."""

MAX_PROMPT_BYTES: Final = 2 * 1024 * 1024
"""Prompt text or all messages together."""

MAX_MESSAGES: Final = 2048
"""Chat turns in one request."""

MAX_OUTPUT_TOKENS: Final = 1_000_000
"""Upper bound of max_tokens; also bounds delivered tokens on resume."""

MAX_STOPS: Final = 16
MAX_STOP_BYTES: Final = 512
"""Stop strings are held back while they may still match; OpenAI allows 4, llama-server more."""

MAX_TOOLS: Final = 128
"""Functions offered to a model, as OpenAI has it."""

MAX_SCHEMA_BYTES: Final = 64 * 1024
"""JSON schema of an answer or of a function's arguments. A grammar is compiled from it."""

MAX_TOP_LOGPROBS: Final = 20
MAX_BIASES: Final = 1024
"""Entries of logit_bias; OpenAI has 300."""

MAX_INPUTS: Final = 2048
"""Texts of one request for embeddings, as OpenAI has it."""

MAX_MODELS_PER_AD: Final = 32
MAX_GPUS_PER_AD: Final = 16
MAX_RATES_PER_MODEL: Final = 6
"""Speeds by number of answers at once: 1, 2, 4, 8, 16, 32."""

AD_TTL_S: Final = 10.0
"""Hard maximum life of an ad. With the allowed skew a dead node is gone from every view within 15 s."""

CLOCK_SKEW_S: Final = 3.0
"""How far two honest clocks may disagree before ads or tasks are judged expired."""

TASK_TTL_S: Final = 60.0
"""How long a task offer may travel; also how long the replay cache must remember."""

REPLAY_CACHE_ENTRIES: Final = 65_536
"""At 600 tasks/s for 60 s, with room; beyond it offers are declined, not forgotten."""

HEARTBEAT_INTERVAL_S: Final = 0.5
SUSPECT_AFTER_S: Final = 1.5
"""Three missed heartbeats: no new work, running work is moved off. With the interval it stays below 2 s."""

LEASE_S: Final = 5.0
"""A worker that has heard nothing of the submitter for so long cancels the attempt: no orphans."""

MAX_ATTEMPTS: Final = 16
"""Attempts of one job before it fails: more would only move the same fault around."""
