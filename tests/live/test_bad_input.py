"""Whatever is wrong is told in words, typed, and the daemon goes on serving what is right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshd.testing.cluster import Cluster, ClusterFailed, Node
from tests.live.asking import TINY, ask, body
from tests.live.conftest import SETTINGS

pytestmark = pytest.mark.live

HOME_UNUSABLE, REFUSED, ALREADY, CANNOT = 4, 7, 9, 11


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[tuple[Cluster, Node]]:
    """One machine with one model."""
    with Cluster(tmp_path_factory.mktemp("solo"), SETTINGS) as cluster:
        node = cluster.found("solo")
        cluster.add_model(node, tiny, TINY)
        yield cluster, node


def still_good(node: Node) -> None:
    """The daemon answers a right request rightly."""
    answer = ask(node, body(max_tokens=3))
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 3
    assert "Traceback" not in node.log.read_text("utf-8")


def mesh(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`mesh` as a person types it."""
    line = [sys.executable, "-P", "-m", "mesh_cli.main", "--home", str(home), *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command said: one line and at most a hint, never a traceback."""
    said = done.stderr.strip()
    assert done.returncode != 0 and said and "Traceback" not in said, (done.returncode, said)
    return said


BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("unknown model", {"model": "nobody-has-it"}, 404, "model_not_found"),
    ("oversize prompt", {"prompt": "word " * 3000}, 400, "context_length_exceeded"),
    ("temperature", {"temperature": -1}, 400, "invalid_request"),
    ("top_p", {"top_p": 1.5}, 400, "invalid_request"),
    ("seed", {"seed": "seven"}, 400, "invalid_request"),
    ("n", {"n": 17}, 400, "invalid_request"),
    ("max_tokens", {"max_tokens": 0}, 400, "invalid_request"),
    ("stop", {"stop": [""]}, 400, "invalid_request"),
    ("unheard-of field", {"colour": "blue"}, 400, "invalid_request"),
    ("unknown class", {"mesh": {"class": "secret"}}, 400, "invalid_request"),
    ("bad region", {"mesh": {"regions": ["EU!"]}}, 400, "invalid_request"),
    ("no prompt", {"prompt": None}, 400, "invalid_request"),
]


@pytest.mark.parametrize(("what", "change", "status", "code"), BAD, ids=[case[0] for case in BAD])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_request_that_is_wrong_is_told_so(
    solo: tuple[Cluster, Node], what: str, change: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    _, node = solo
    answer = ask(node, {**body(max_tokens=3, stream=stream), **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.json()["error"]["message"]
    still_good(node)


@pytest.mark.parametrize("raw", [b"{", b"", b"[]", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a":1,"a":2'])
def test_what_is_no_json_object_is_told_so(solo: tuple[Cluster, Node], raw: bytes) -> None:
    _, node = solo
    answer = node.http.post("/v1/completions", content=raw)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), answer.text
    still_good(node)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic abc", "Bearer"])
def test_without_the_token_nothing_is_served(solo: tuple[Cluster, Node], header: str | None) -> None:
    _, node = solo
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/mesh/v1/status", "/mesh/v1/jobs"):
        answer = httpx.get(node.api_url + path, headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    still_good(node)


def test_a_file_that_is_no_good_model_is_refused_in_one_line(
    solo: tuple[Cluster, Node], tiny: Path, tmp_path: Path
) -> None:
    _, node = solo
    whole = tiny.read_bytes()
    files = {
        "text": b"this is not a model\n" * 100,
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "header": whole[:64],
        "bomb": whole[:8] + b"\xff" * 16 + whole[24:],
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        done = mesh(node.home, "model", "add", str(path), "--name", name)
        assert done.returncode == CANNOT, (name, done.returncode, done.stderr)
        assert one_line(done)
    assert [m["name"] for m in node.get("/mesh/v1/models")["models"]] == [TINY]
    still_good(node)


def test_a_second_daemon_in_the_same_home_and_on_the_same_port_is_told_so(
    solo: tuple[Cluster, Node], tmp_path: Path
) -> None:
    _, node = solo
    second = subprocess.run(
        [sys.executable, "-P", "-m", "meshd.app", "--home", str(node.home), "run"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1 and json.loads(second.stderr.splitlines()[-1])["code"] == "already_done"
    assert "Traceback" not in second.stderr
    assert "already up" in mesh(node.home, "up").stdout

    port = node.api_url.rpartition(":")[2]
    other = Cluster(tmp_path, {**SETTINGS, "api": {"port": int(port)}})
    with other, pytest.raises(ClusterFailed):
        other.found("other")
    done = mesh(tmp_path / "other", "up")
    assert done.returncode == CANNOT and port in one_line(done)
    still_good(node)


def test_a_configuration_is_told_all_its_problems_at_once(tmp_path: Path) -> None:
    with Cluster(tmp_path, SETTINGS) as other:
        broken = other.found("broken")
        other.down(broken)
        (broken.home / "config.toml").write_text("[api]\nport = 99999\nsurprise = 1\n[log]\nlevel = 'loud'\n", "utf-8")
        done = mesh(broken.home, "up")
        said = one_line(done)
        assert done.returncode == HOME_UNUSABLE
        assert "api.port" in said and "api.surprise" in said and "log.level" in said


def test_a_home_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    missing = mesh(tmp_path / "nowhere", "up")
    assert missing.returncode == HOME_UNUSABLE and one_line(missing)
    (tmp_path / "file").write_text("not a directory", "utf-8")
    assert mesh(tmp_path / "file", "up").returncode == HOME_UNUSABLE
    (tmp_path / "shared").mkdir(mode=0o777)
    (tmp_path / "shared").chmod(0o777)
    done = mesh(tmp_path / "shared", "up")
    assert done.returncode == HOME_UNUSABLE and one_line(done)
