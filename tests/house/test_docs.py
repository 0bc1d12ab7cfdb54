"""What the documents say about code is true of the code."""

from __future__ import annotations

import re

import pytest

from meshd.core import limits
from meshd.wire import protocols
from tests.house import floors

DOCS = floors.ROOT / "docs"
NUMBER_ROW = re.compile(r"^\| `([A-Z_]+)` \| ([\d.]+) \|", re.MULTILINE)
CONSTANTS = {name: value for name, value in vars(limits).items() if name.isupper()}


def test_the_protocol_names_every_limit_with_its_value() -> None:
    rows = {name: float(value) for name, value in NUMBER_ROW.findall((DOCS / "protocol.md").read_text("utf-8"))}
    assert rows == CONSTANTS


def test_the_protocol_names_no_limit_that_does_not_exist() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", (DOCS / "protocol.md").read_text("utf-8")))
    assert named - set(CONSTANTS) - {kind.name for kind in protocols.ControlFrame} == set()


@pytest.mark.parametrize("frames", [protocols.ControlFrame, protocols.TaskFrame, protocols.Sealed])
def test_the_protocol_names_every_frame_with_its_number(frames: type[protocols.IntEnum]) -> None:
    text = (DOCS / "protocol.md").read_text("utf-8")
    assert [frame.name for frame in frames if f"| {frame.name} | {int(frame)} |" not in text] == []


def test_every_test_that_is_named_as_proof_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "threats.md").read_text("utf-8")))
    paths = (floors.ROOT / "tests").rglob("test_*.py")
    known = {name for path in paths for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))}
    assert named
    assert named - known == set()


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_written_floors_are_those_of_the_plan(name: str) -> None:
    text = (floors.ROOT / name).read_text("utf-8")
    rows = re.findall(r"^\| (\d|side|out) \| `(?:meshd|cli)/(\w+)` \|", text, re.MULTILINE)
    written = {"cli" if room == "mesh_cli" else room: floor for floor, room in rows}
    doors = set(floors.DOORS.values())
    assert set(written) == set(floors.ROOMS) - doors
    for room, floor in written.items():
        assert floor in (str(floors.ROOMS[room].floor), "side", "out")


def test_links_between_documents_lead_somewhere() -> None:
    paths = [*DOCS.rglob("*.md"), floors.ROOT / "README.md", floors.ROOT / "CONTRIBUTING.md"]
    broken = []
    for path in paths:
        text = path.read_text("utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not (path.parent / target).exists():
                broken.append(f"{path.name}: {target}")
        for target in re.findall(r"`((?:docs|meshd|tests|scripts|configs)/[\w./-]*[a-z])`", text):
            if not (floors.ROOT / target).exists():
                broken.append(f"{path.name}: {target}")
    assert broken == []
