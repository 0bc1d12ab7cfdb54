"""The daemon's local HTTP API, from the client's side. The only file that imports httpx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx

from mesh_cli.failure import Failure
from mesh_cli.home import Daemon, Home, not_running
from meshd.api import contract

CONNECT_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 15.0
MODEL_TIMEOUT_S: Final = 900.0
"""Adding a model reads and hashes the whole file, and loads it once."""
UPSTREAM_TIMEOUT_S: Final = 180.0
"""Adding an upstream asks the server for a handful of answers; some load the model first."""
TOKEN_TIMEOUT_S: Final = 300.0
"""Between two pieces of a streamed answer: a large model may load and read a long prompt first."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024

View = dict[str, Any]


class Api:
    """One daemon's API. Every method raises only Failure: not_running, timeout, or the daemon's own code."""

    def __init__(self, home: Home, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.home = home
        self.daemon: Daemon = home.daemon()
        self._answer_timeout_s = answer_timeout_s
        # A proxy from the environment has no business with loopback, and must not see the token.
        self._http = httpx.Client(
            base_url=self.daemon.api_url,
            headers={"Authorization": f"Bearer {home.token()}"},
            trust_env=False,
            timeout=httpx.Timeout(answer_timeout_s, connect=CONNECT_TIMEOUT_S),
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> View:
        """The view at ``path``."""
        return self._call("GET", path, None, self._answer_timeout_s)

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None) -> View:
        """What the daemon answers to ``body``."""
        return self._call("POST", path, dict(body or {}), timeout_s or self._answer_timeout_s)

    def delete_model(self, name: str) -> None:
        """Forget the model called ``name``."""
        self.delete(contract.MODEL, name)

    def delete(self, path: str, name: str) -> None:
        """Forget what ``name`` stands for at ``path``, which holds ``{name:path}``."""
        self._call("DELETE", path.replace("{name:path}", quote(name, safe="/")), None, self._answer_timeout_s)

    def _call(self, method: str, path: str, body: object, timeout_s: float) -> View:
        with self._translated(timeout_s):
            answer = self._http.request(
                method, path, json=body, timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
            )
        return _view(answer)

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[str, Iterator[str]]]:
        """POST ``body`` and give (job id, lines of the event stream) while the context is open. Leaving it early
        closes the connection, which cancels the job everywhere."""
        timeout = httpx.Timeout(TOKEN_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        with (
            self._translated(TOKEN_TIMEOUT_S),
            self._http.stream("POST", path, json=dict(body), timeout=timeout) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                _view(answer)
            yield answer.headers.get(contract.JOB_HEADER, ""), answer.iter_lines()

    @contextmanager
    def _translated(self, timeout_s: float) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise not_running(self.home.path) from None
        except httpx.TimeoutException:
            raise Failure(
                "timeout", f"the daemon did not answer within {timeout_s:g} s", hint=f"look into {self.home.log}"
            ) from None
        except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Failure(
                "truncated", f"the daemon broke off: {error}", hint="is it still up? see mesh status"
            ) from None


def _view(answer: httpx.Response) -> View:
    """The JSON object of a good answer; the Failure that a bad one stands for."""
    try:
        data = answer.json() if len(answer.content) <= MAX_ANSWER_BYTES else None
    except ValueError:
        data = None
    if answer.is_success and isinstance(data, dict):
        return data
    raise failure_of(data, f"the daemon answered HTTP {answer.status_code} without a reason")


def failure_of(data: object, otherwise: str) -> Failure:
    """The Failure in an error object, OpenAI's or plain; one that says ``otherwise`` when there is none."""
    error = data.get("error", data) if isinstance(data, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return Failure("mesh_error", otherwise)
    code, hint = error.get("code"), error.get("hint")
    code = code if isinstance(code, str) else "mesh_error"
    hint = hint if isinstance(hint, str) else ""
    if code == "invalid_api_key" and not hint:
        hint = "mesh token show prints this home's token; mesh token rotate makes a new one"
    return Failure(code, error["message"], hint=hint)
