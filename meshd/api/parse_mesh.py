"""The bodies of the /mesh/v1 routes to values of ours. Pure; every function raises only BadInput."""

from __future__ import annotations

from meshd.api.fields import Fields
from meshd.core.classes import DataClass, Region
from meshd.core.trust import parse_name
from meshd.core.upstream import MAX_KEY_CHARS, MAX_SLOTS, Upstream, normal_url
from meshd.node.views import InviteRequest, NoopRequest

MAX_INVITE_VALID_S = 30 * 24 * 3600.0
MAX_NOOPS = 10_000
MAX_NOOPS_AT_ONCE = 64
"""An invite is a bearer secret: a month is long enough to lose one."""

MAX_DRAIN_S = 24 * 3600.0


def parse_nothing(body: object) -> None:
    """Accept an empty object only."""
    Fields(body).finish()


def parse_share(body: object) -> tuple[float | None, int | None]:
    """{"cpu": fraction|null, "memory_bytes": int|null}; None keeps what was."""
    fields = Fields(body)
    cpu = fields.number("cpu", 0.01, 1)
    memory_bytes = fields.integer("memory_bytes", 64 * 1024 * 1024, 2**50)
    fields.finish()
    return cpu, memory_bytes


def parse_drain(body: object, default_s: float) -> float:
    """{"deadline_s": seconds}; ``default_s`` when absent."""
    fields = Fields(body)
    deadline_s = fields.number("deadline_s", 0, MAX_DRAIN_S)
    fields.finish()
    return default_s if deadline_s is None else deadline_s


def parse_add_model(body: object) -> tuple[str, str | None]:
    """{"path": file, "name"?: str}."""
    fields = Fields(body)
    path = fields.required_text("path", max_chars=4096)
    name = fields.text("name", max_chars=200)
    fields.finish()
    return path, name or None


def parse_invite(body: object) -> InviteRequest:
    """{"site", "region", "clearance", "valid_s", "uses", "labels"}; uses defaults to 1, valid_s to a day."""
    fields = Fields(body)
    site = parse_name(fields.required_text("site", max_chars=100), param="site")
    region = Region(fields.required_text("region", max_chars=300))
    clearance = DataClass.parse(fields.required_text("clearance", max_chars=40), param="clearance")
    valid_s = fields.number("valid_s", 1, MAX_INVITE_VALID_S)
    uses = fields.integer("uses", 1, 10_000)
    labels = fields.texts("labels", max_items=16, max_chars=64)
    fields.finish()
    return InviteRequest(site, region, clearance, 24 * 3600.0 if valid_s is None else valid_s, uses or 1, labels)


def parse_add_upstream(body: object) -> Upstream:
    """{"url", "model", "name"?: the model's name there, "class_max"?: internal, "slots"?: 16, "context_tokens"?,
    "key"?: bearer token}."""
    fields = Fields(body)
    url = normal_url(fields.required_text("url", max_chars=500))
    model = fields.required_text("model", max_chars=200)
    name = fields.text("name", max_chars=200)
    class_max = fields.text("class_max", max_chars=40)
    slots = fields.integer("slots", 1, MAX_SLOTS)
    context_tokens = fields.integer("context_tokens", 1, 2**30)
    key = fields.text("key", max_chars=MAX_KEY_CHARS)
    fields.finish()
    highest = DataClass.INTERNAL if class_max is None else DataClass.parse(class_max, param="class_max")
    return Upstream(name or model, url, model, highest, slots or 16, context_tokens or 0, key or "")


def parse_noop(body: object) -> NoopRequest:
    """{"worker"?: a node's id or name (absent: the node chooses), "count"?: 1 to 10,000, "concurrency"?: 1 to 64}."""
    fields = Fields(body)
    worker = fields.text("worker", max_chars=100)
    count = fields.integer("count", 1, MAX_NOOPS)
    concurrency = fields.integer("concurrency", 1, MAX_NOOPS_AT_ONCE)
    fields.finish()
    return NoopRequest(worker or None, count or 1, concurrency or 1)
