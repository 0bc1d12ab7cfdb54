"""Local discovery."""

from __future__ import annotations

import subprocess
import sys

import pytest
from zeroconf import ServiceInfo

from meshd.net.mdns import SERVICE, Hint, _hint
from tests.net.members import id_of

NAMESPACE = ("unshare", "-n")


def can_make_a_namespace() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.live
@pytest.mark.skipif(not can_make_a_namespace(), reason="needs the right to make a network namespace")
def test_members_on_one_lan_hear_of_each_other_and_of_nobody_else() -> None:
    command = [*NAMESPACE, sys.executable, "-W", "error", "-m", "tests.net.mdns_world"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "heard of each other\n", done.stderr


def announcement(**properties: str) -> ServiceInfo:
    return ServiceInfo(SERVICE, f"x.{SERVICE}", addresses=[bytes([127, 0, 0, 1])], port=9, properties=properties)


def test_announcements_of_others_and_nonsense_are_no_hints() -> None:
    assert _hint(announcement(org="us", node=id_of(2)), "us") == Hint(id_of(2), ("/ip4/127.0.0.1/tcp/9",))
    assert _hint(announcement(org="them", node=id_of(2)), "us") is None
    assert _hint(announcement(org="us", node="somebody"), "us") is None
    assert _hint(announcement(org="us"), "us") is None
    assert _hint(announcement(), "us") is None
