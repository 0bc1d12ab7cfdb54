"""Rendering: fixed pictures give exactly this text at 80 columns, and never a wider line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from mesh_cli.checks import Check
from mesh_cli.render.doctor import check_list
from mesh_cli.render.grid import fit
from mesh_cli.render.jobs import job_detail, job_table
from mesh_cli.render.models import model_table
from mesh_cli.render.nodes import node_table
from mesh_cli.render.org import org_card
from mesh_cli.render.share import share_line
from mesh_cli.render.status import status_screen
from mesh_cli.render.text import age, as_text, clean, size
from rich.cells import cell_len

from meshd.node.views import EngineView
from tests.cli import views
from tests.cli.views import NOW, plain

STATUS = """\
atlas  open  3 of 4 slots free
  acme · berlin · eu/de/berlin · up to confidential
  certificate 29d left · issuer
  http://127.0.0.1:4720 · up 2h 10m · 0.1.0

! the clock of ceres is 2.5 s ahead

Peers  1 of 2 alive
  NAME    LIVE     SEEN  STATE                      MODELS
  boreas  alive    (3s)  open                       gemma3-270m, qwen3-4b
  ceres   suspect    4s  paused: the owner is back  gemma3-270m

Jobs  1 running
  JOB           STATE    MODEL        WHERE           TOKENS  TOOK  AGE
  job_013f3f3f  running  gemma3-270m  boreas > ceres      46  2.1s   2s

Models
  MODEL        CONTEXT  PREFILL  TOK/S  WHERE
  gemma3-270m      32k      752     81  here, ceres, boreas
  qwen3-4b         32k      752    9.3  boreas

Engines
  MODEL        STATE   PID   MEMORY  SLOTS
  gemma3-270m  ready  4242  384 MiB    3/4

Policy
  organisation  clearance and region, as certificates attest them
  owner         shares 50% of the CPU (4 threads), engines up to 4.0 GiB
"""

ALONE = """\
atlas  not sharing  3 of 4 slots free
  acme · berlin · eu/de/berlin · up to confidential
  certificate EXPIRED · issuer
  http://127.0.0.1:4720 · up 2h 10m · 0.1.0

Peers  none: this node is alone, and still answers

Jobs  none running

Models  none: mesh model add FILE

Policy
  organisation  clearance and region, as certificates attest them
  owner         shares nothing  mesh share changes that
"""


def text(renderable: Any, width: int = 80) -> str:
    return as_text(renderable, width=width)


def test_status() -> None:
    assert text(status_screen(plain(views.status()), now=NOW)) == STATUS


ENGINES = """\
Engines
  MODEL        STATE         PID   MEMORY  SLOTS
  gemma3-270m  ready        4242  384 MiB    3/4
  qwen3-4b     loading 42%  4243   40 MiB    0/4
  phi          resting         -        -      -
  old          idle            -        -      -
  phi: the engine died (signal 9: killed from outside, as by a system without
  memory)
  old: not used for 900 s: loads when it is needed
"""


def test_status_says_of_every_engine_what_it_does_and_why_not() -> None:
    died = "the engine died (signal 9: killed from outside, as by a system without memory)"
    engines = (
        *views.status().engines,
        EngineView("qwen3-4b", "q", 4243, 40 * 2**20, 4, 0, "loading", "", 0.42),
        EngineView("phi", "p", 0, 0, 0, 0, "resting", died, 0.0),
        EngineView("old", "o", 0, 0, 0, 0, "idle", "not used for 900 s: loads when it is needed", 0.0),
    )
    shown = text(status_screen(plain(views.status(engines=engines)), now=NOW))
    assert ENGINES in shown


def test_status_alone() -> None:
    me = views.node("atlas", liveness="self", state="not_sharing", reason="not sharing")
    share = replace(views.SHARE, enabled=False)
    view = plain(views.status(me=me, share=share, peers=(), jobs=(), models=(), engines=(), warnings=()))
    assert text(status_screen(view, now=NOW + 30 * 86400)) == ALONE


def test_status_shows_a_policy_epoch_when_there_is_one() -> None:
    view = plain(views.status()) | {"policy": {"epoch": 12}}
    assert "organisation  policy epoch 12" in text(status_screen(view, now=NOW))


def crowded() -> dict[str, Any]:
    long = "a-machine-with-a-name-that-nobody-can-remember-" * 2
    peers = tuple(
        views.node(
            f"{long}{n}", reason="battery at 12 percent, and the owner types " * 3, models=(views.model(long),) * 4
        )
        for n in range(40)
    )
    jobs = tuple(views.job(n, model=long) for n in range(30))
    view: dict[str, Any] = plain(views.status(peers=peers, jobs=jobs, warnings=("w" * 300,)))
    return view


@pytest.mark.parametrize("width", [60, 80, 132])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    view = crowded()
    for picture in (
        status_screen(view, now=NOW),
        node_table(view["peers"]),
        job_table(view["jobs"], now=NOW),
        job_detail(view["jobs"][0], now=NOW),
        org_card(view["org"] | {"root_key": "k" * 200}, now=NOW),
    ):
        assert max(map(cell_len, text(picture, width).splitlines())) <= width


def test_a_crowd_is_counted_not_listed() -> None:
    shown = text(status_screen(crowded(), now=NOW))
    assert "and 32 more: mesh nodes" in shown
    assert "and 25 more: mesh jobs" in shown
    assert len(shown.splitlines()) < 45


def test_control_characters_of_others_never_reach_the_terminal() -> None:
    evil = views.node("x\x1b]0;owned\x07\r\n", reason="\x1b[2J\x9b1m")
    shown = text(node_table([plain(evil)]))
    assert not set(shown) & set("\x1b\x07\r\x9b")
    assert len(shown.splitlines()) == 3
    assert clean("a\tb") == "a\N{REPLACEMENT CHARACTER}b"


def test_job_detail() -> None:
    assert text(job_detail(plain(views.job()), now=NOW)) == (
        "job_013f3f3f3f3f3f3f3f3f3f3f3f3f3f3f\n"
        "  model    gemma3-270m\n"
        "  state    running\n"
        "  finish   -\n"
        "  tokens   17 in, 46 out\n"
        "  took     2.1s\n"
        "  started  2s ago\n"
        "  sent by  atlas\n"
        "\n"
        "Attempts\n"
        "  #  WORKER  TOKENS    GAP  OUTCOME\n"
        "  1  boreas      34      -  lost\n"
        "  2  ceres       12  61 ms  running\n"
    )


def test_a_job_run_for_another_says_for_whom() -> None:
    assert "for boreas" in text(job_table([plain(views.job(role="worker", submitter="boreas"))], now=NOW))


def test_empty_lists_say_what_to_do() -> None:
    assert text(job_table([], now=NOW)) == "no jobs yet: mesh run starts one\n"
    assert text(model_table([])) == "no models yet: mesh model add FILE\n"


def test_share_line() -> None:
    share = plain(views.SHARE) | {"paused": True, "threads": 1}
    assert text(share_line(share)) == "shares 50% of the CPU (1 thread), engines up to 4.0 GiB - paused\n"


def test_doctor() -> None:
    checks: list[Check] = [
        {"name": "home", "ok": True, "detail": "private", "hint": "unused"},
        {"name": "daemon", "ok": False, "detail": "not running", "hint": "mesh up"},
    ]
    assert text(check_list(checks)) == (
        "ok  home    private\nBAD daemon  not running\n            hint: mesh up\n1 problem found\n"
    )


def test_colour_only_when_asked() -> None:
    picture = status_screen(plain(views.status()), now=NOW)
    assert "\x1b[" not in as_text(picture, width=80)
    assert "\x1b[" in as_text(picture, width=80, colour=True)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (0.4, "now"),
        (59.9, "59s"),
        (60, "1m"),
        (3600, "1h"),
        (7800, "2h 10m"),
        (86400 * 8, "8d"),
        (-5, "now"),
    ],
)
def test_age(seconds: float | None, expected: str) -> None:
    assert age(seconds) == expected


def test_size() -> None:
    assert [size(None), size(384 * 2**20), size(4 * 2**30), size(512 * 2**30)] == ["-", "384 MiB", "4.0 GiB", "512 GiB"]


def test_the_widest_column_gives_way_first() -> None:
    assert fit([10, 20, 5], wide=(1,), room=30) == [10, 15, 5]
    assert fit([10, 20, 12], wide=(1, 2), room=30) == [10, 10, 10]
    assert fit([10, 20, 5], wide=(1,), room=20) == [7, 8, 5]
    assert fit([3, 4], wide=(), room=80) == [3, 4]
