"""What must not be left lying about in a tree that others will read."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.house.floors import ROOT

TEXT = {".py", ".md", ".toml", ".txt", ".html", ".js", ".css", ""}
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:work|root|Users|home/[a-z]+|tmp/[a-z]+)\b")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
FOREIGN_URL = re.compile(
    r"\bhttps?://(?!127\.0\.0\.1|localhost|\[::1\]|\{|\$|<|[\w.-]*\bexample\b|HOST\b|\.\.\.)[\w.-]+\.[a-z]{2,}"
)


def _texts(*folders: str) -> list[Path]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    return [path for path in paths if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts]


def findings(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def test_no_path_of_one_machine() -> None:
    paths = [*_texts("meshd", "cli", "configs", "scripts", "docs"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert findings(MACHINE_PATH, paths) == []


def test_nothing_is_left_for_later() -> None:
    assert findings(UNFINISHED, _texts("meshd", "cli", "configs", "scripts")) == []


def test_the_product_names_no_host_on_the_internet() -> None:
    assert findings(FOREIGN_URL, _texts("meshd", "cli", "configs", "scripts")) == []


@pytest.mark.parametrize(
    ("pattern", "bad", "good"),
    [
        (MACHINE_PATH, 'open("/home/anna/x")', "DELETE /v1/models/{name}, ~/work/x, a/root/b"),
        (UNFINISHED, "# TODO: later", "todoist"),
        (FOREIGN_URL, "see https://files.somewhere.org/x", "http://127.0.0.1:8080, http://mesh.example/"),
    ],
)
def test_the_words_are_caught(pattern: re.Pattern[str], bad: str, good: str) -> None:
    assert pattern.search(bad)
    assert not pattern.search(good)


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {_normal(line.split("==")[0]) for line in lines}
    assert all("==" in line for line in lines)
    assert [name for name in wanted if _normal(re.split(r"[\[=<>!~; ]", name)[0]) not in pinned] == []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    "name", ["scripts/_setup", "scripts/test", "scripts/demo", "scripts/bench", "scripts/lock", ".ci/run"]
)
def test_the_shell_scripts_parse_and_can_be_run(name: str) -> None:
    path = ROOT / name
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
