"""The local HTTP contract as pure data: paths, codes, statuses. Shared by the server and the `mesh` client.

Bodies of ``/mesh/v1`` answers are `dataclasses.asdict` of the views in `meshd.node.views`.
"""

from __future__ import annotations

from typing import Final

API_PREFIX: Final = "/mesh/v1"
STATUS: Final = "/mesh/v1/status"  # GET -> StatusView
NODES: Final = "/mesh/v1/nodes"  # GET -> {"nodes": [NodeView]}
JOBS: Final = "/mesh/v1/jobs"  # GET -> {"jobs": [JobView]}
SHARE: Final = "/mesh/v1/share"  # POST {"cpu": 0.5|null, "memory_bytes": int|null} -> ShareView
UNSHARE: Final = "/mesh/v1/unshare"  # POST -> ShareView
PAUSE: Final = "/mesh/v1/pause"  # POST -> ShareView
RESUME: Final = "/mesh/v1/resume"  # POST -> ShareView
DRAIN: Final = "/mesh/v1/drain"  # POST {"deadline_s": float} -> ShareView, when idle
MODELS: Final = "/mesh/v1/models"  # GET -> {"models": [MeshModelView]}; POST {"path", "name"?} -> ModelView
MODEL: Final = "/mesh/v1/models/{name:path}"  # DELETE -> {}
UPSTREAMS: Final = "/mesh/v1/upstreams"
# GET -> {"upstreams": [UpstreamView]}
# POST {"url", "model", "name"?, "class_max"?, "slots"?, "context_tokens"?, "key"?} -> UpstreamView, the server asked
UPSTREAM: Final = "/mesh/v1/upstreams/{name:path}"  # DELETE -> {}
INVITES: Final = "/mesh/v1/invites"  # POST {"site","region","clearance","valid_s","uses","labels"} -> {"invite": str}
NOOP: Final = "/mesh/v1/noop"  # POST {"worker"?, "count"?, "concurrency"?} -> NoopReport: no-op tasks, timed
TOKENIZE: Final = "/mesh/v1/tokenize"  # POST {"model", "text"|"messages", "special"?, "pieces"?} -> {"tokens": [ids]}
DETOKENIZE: Final = "/mesh/v1/detokenize"  # POST {"model", "tokens", "special"?} -> {"text": str}
SHUTDOWN: Final = "/mesh/v1/shutdown"  # POST -> {}
V1_MODELS: Final = "/v1/models"  # these six as OpenAI's clients call them
V1_MODEL: Final = "/v1/models/{name:path}"
V1_CHAT: Final = "/v1/chat/completions"
V1_COMPLETIONS: Final = "/v1/completions"
V1_EMBEDDINGS: Final = "/v1/embeddings"
V1_RESPONSES: Final = "/v1/responses"
OPENAPI: Final = "/openapi.json"  # GET -> what all these routes take and answer, as OpenAPI 3.1
HEALTH: Final = "/healthz"  # GET, no token -> {"ok": true}

JOB_HEADER: Final = "X-Mesh-Job"
"""Names the request's job; of several answers at once all jobs, in order, with commas."""

STATUS_OF: Final[dict[str, int]] = {
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "model_invalid": 400,
    "beyond_limits": 400,
    "invite_invalid": 400,
    "config_invalid": 400,
    "invalid_api_key": 401,
    "model_not_found": 404,
    "not_found": 404,
    "already_done": 409,
    "mesh_overloaded": 503,
    "mesh_no_worker": 503,
    "engine_failed": 503,
    "unreachable": 503,
}
"""HTTP status by error code; any other code is 500."""
