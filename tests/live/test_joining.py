"""Who gets in, and who does not: invites against a real issuer, another organisation, and garbage at both doors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from meshd.core.errors import ClockWrong
from meshd.net.enrolment import knock
from meshd.testing.cluster import Cluster, Node, until
from meshd.wire.enrol import EnrolClient
from meshd.wire.invite import parse_invite
from meshd.wire.keys import NodeKey
from tests.live.conftest import SETTINGS

pytestmark = pytest.mark.live

REFUSED, ALREADY = 7, 9
SOCKET_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Node]]:
    """An organisation of one machine."""
    with Cluster(tmp_path_factory.mktemp("harbour"), SETTINGS) as cluster:
        yield cluster, cluster.found("issuer")


def invite(cluster: Cluster, issuer: Node, *options: str) -> str:
    return str(json.loads(cluster.mesh(issuer, "invite", "--json", *options))["invite"])


def join(home: Path, text: str, name: str = "newcomer") -> subprocess.CompletedProcess[str]:
    """`mesh join` in ``home``, the invite piped in."""
    home.mkdir(mode=0o700, exist_ok=True)
    line = [sys.executable, "-P", "-m", "mesh_cli.main", "--home", str(home), "join", "-", "--name", name]
    return subprocess.run(line, input=text, capture_output=True, text=True, timeout=60, check=False)


def refused(done: subprocess.CompletedProcess[str], code: int = REFUSED) -> str:
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_invite_admits_as_often_as_it_says_and_not_once_more(harbour: tuple[Cluster, Node], tmp_path: Path) -> None:
    cluster, issuer = harbour
    text = invite(cluster, issuer)
    assert join(tmp_path / "first", text).returncode == 0
    assert "invite" in refused(join(tmp_path / "second", text)).lower()
    assert "member" in refused(join(tmp_path / "first", invite(cluster, issuer)), ALREADY)


def test_a_tampered_an_expired_and_a_meaningless_invite_are_refused(
    harbour: tuple[Cluster, Node], tmp_path: Path
) -> None:
    cluster, issuer = harbour
    brief, until_s = invite(cluster, issuer, "--valid", "1s"), time.time() + 1.0
    text = invite(cluster, issuer)
    for place in (10, len(text) // 2, len(text) - 6):
        other = "A" if text[place] != "A" else "B"
        refused(join(tmp_path / f"tampered-{place}", text[:place] + other + text[place + 1 :]))
    refused(join(tmp_path / "nonsense", "hello"))
    until(lambda: time.time() > until_s, 5.0, "the short invite is over")
    assert "expired" in refused(join(tmp_path / "late", brief))
    assert join(tmp_path / "good", text).returncode == 0, "wrong tries must not use up the right invite"


def test_a_member_of_another_organisation_never_appears(harbour: tuple[Cluster, Node], tmp_path: Path) -> None:
    _, issuer = harbour
    (door,) = issuer.status()["me"]["addresses"]
    with Cluster(tmp_path, SETTINGS) as cluster:
        other = cluster.found("other", org="rival")
        stranger = cluster.join("stranger", other)
        cluster.down(stranger)
        cluster.down(other)
        membership = stranger.home / "membership.json"
        kept = json.loads(membership.read_text("utf-8"))
        kept["bootstrap"] = [f"{door}/p2p/{issuer.id}"]
        membership.write_text(json.dumps(kept), "utf-8")
        cluster.up(stranger)
        until(lambda: "not a member of this organisation" in stranger.log.read_text("utf-8"), 30.0, "the log says why")
        assert stranger.status()["peers"] == []
    assert stranger.id not in {peer["id"] for peer in issuer.status()["peers"]}
    told = [line for line in issuer.log.read_text("utf-8").splitlines() if "WARNING" in line and "refused" in line]
    assert told and stranger.id in told[0] and len(told) <= 2, told


@pytest.mark.parametrize("off_s", [-3600.0, 3600.0])
def test_a_newcomer_with_a_wrong_clock_is_told_so_before_it_joins(harbour: tuple[Cluster, Node], off_s: float) -> None:
    # The newcomer's side is driven here with another time, since a daemon has no clock but the machine's.
    cluster, issuer = harbour
    text = parse_invite(invite(cluster, issuer), time.time())
    for wrong in (off_s, 0.0):
        client = EnrolClient(text, NodeKey(os.urandom(32)), "late", os.urandom(32))
        answer = trio.run(knock, text.enrol_addresses, client.request(time.time() + wrong))
        if wrong:
            with pytest.raises(ClockWrong, match="clock"):
                client.finish(answer, time.time())
        else:
            assert client.finish(answer, time.time())[1].name == "late"


def test_garbage_at_both_doors_leaves_the_daemon_well(harbour: tuple[Cluster, Node], tmp_path: Path) -> None:
    cluster, issuer = harbour
    doors = [int(issuer.status()["me"]["addresses"][0].rsplit("/", 1)[1]), enrolment_port(issuer)]
    junk = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        b"\xff" * 70_000,
        b"\x00\x00\x00\x05he",
        b"\x13/multistream/1.0.0\n",
    ]
    for port in doors:
        for said in junk:
            with socket.create_connection(("127.0.0.1", port), SOCKET_TIMEOUT_S) as knocking:
                try:
                    knocking.sendall(said)
                    knocking.shutdown(socket.SHUT_WR)
                    while knocking.recv(4096):
                        pass
                except OSError:
                    continue
    assert issuer.status()["peers"] == []
    assert "Traceback" not in issuer.log.read_text("utf-8")
    text = invite(cluster, issuer)
    # Too many knocks from one address make it wait; that is what the listener promises.
    until(lambda: join(tmp_path / "after", text).returncode == 0, 60.0, "a newcomer gets in after the garbage")


def enrolment_port(node: Node) -> int:
    """The listening port of the daemon that is neither its API's nor its peers'."""
    known = {int(node.api_url.rpartition(":")[2]), int(node.status()["me"]["addresses"][0].rsplit("/", 1)[1])}
    sockets = {os.readlink(fd) for fd in Path(f"/proc/{node.pid}/fd").iterdir() if fd.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    listening = {int(r[1].rpartition(":")[2], 16) for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in sockets}
    (port,) = listening - known
    return port
