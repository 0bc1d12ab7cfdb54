"""The client against the daemon's real HTTP API, with a scripted node behind it: both sides keep the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from mesh_cli.exits import Exit
from mesh_cli.main import cli

from meshd.core.classes import DataClass, Region
from meshd.core.errors import BeyondLimits, MeshError, ModelInvalid, NotAuthorised, NoWorker, Overloaded
from meshd.node.views import InviteRequest, Rerouted, TextDelta
from tests.api.fake_service import RECEIPT, FakeService, done, plays
from tests.api.running import TOKEN, running
from tests.cli.contract_server import write_home


async def typed(service: FakeService, home: Path, *arguments: str, stdin: str = "") -> Result:
    """``mesh ARGUMENTS`` as a person's process would do it, in a thread beside the API."""

    def work() -> Result:
        return CliRunner(env={"MESH_HOME": str(home), "COLUMNS": "80"}).invoke(cli, list(arguments), input=stdin)

    async with running(service) as api:
        write_home(home, api.url, token=TOKEN)
        with trio.fail_after(120):
            result: Result = await trio.to_thread.run_sync(work)
    return result


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (("share", "--cpu", "25%", "--memory", "1GiB"), ("share", 0.25, 2**30)),
        (("share",), ("share", None, None)),
        (("unshare",), ("unshare",)),
        (("pause",), ("pause",)),
        (("resume",), ("resume",)),
        (("drain", "--deadline", "5s"), ("drain", 5.0)),
        (("model", "rm", "org/tiny"), ("remove_model", "org/tiny")),
        (("status",), ("status",)),
        (("nodes",), ("nodes",)),
        (("jobs",), ("jobs",)),
        (("org", "show"), ("status",)),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
async def test_a_verb_reaches_the_node(tmp_path: Path, words: tuple[str, ...], call: tuple[object, ...]) -> None:
    service = FakeService()
    result = await typed(service, tmp_path, *words)
    assert (result.exit_code, result.stderr if words[0] != "drain" else "") == (Exit.OK, "")
    assert service.calls == [call]


async def test_model_add_and_list(tmp_path: Path) -> None:
    service = FakeService()
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    assert (await typed(service, tmp_path, "model", "add", str(file), "--name", "t")).exit_code == Exit.OK
    assert service.calls == [("add_model", str(file), "t")]
    listed = await typed(service, tmp_path, "model", "list")
    assert listed.stdout.splitlines()[1].split()[:2] == ["org/tiny", "2k"]


async def test_invite(tmp_path: Path) -> None:
    service = FakeService()
    words = ("invite", "--clearance", "public", "--valid", "2h", "--uses", "2", "--label", "a=b")
    assert (await typed(service, tmp_path, *words)).stdout == "mesh1invite\n"
    expected = InviteRequest("hq", Region("eu/de"), DataClass.PUBLIC, 7200.0, 2, ("a=b",))
    assert service.calls == [("status",), ("invite", expected)]


async def test_run_sends_what_was_asked(tmp_path: Path) -> None:
    service = FakeService()
    words = "run -m org/tiny --max-tokens 5 --temperature 0 --top-p 0.5 --seed 9 --exact --class public --region eu hi"
    result = await typed(service, tmp_path, *words.split())
    assert result.stdout == "Hello world\n"
    (job,) = service.submitted
    assert job.generation is not None
    assert job.generation.exact
    assert job.generation.max_tokens == 5
    assert (job.generation.sampling.temperature, job.generation.sampling.top_p, job.generation.sampling.seed) == (
        0,
        0.5,
        9,
    )
    assert job.generation.prompt.messages[0].content == "hi"
    assert job.constraints.data_class is DataClass.PUBLIC
    assert job.constraints.regions == (Region("eu"),)


async def test_run_raw_with_the_default_model_as_json(tmp_path: Path) -> None:
    service = FakeService()
    answer = json.loads((await typed(service, tmp_path, "run", "--raw", "--json", stdin="Once")).stdout)
    (job,) = service.submitted
    assert job.generation is not None
    assert job.generation.prompt.text == "Once"
    assert (answer["text"], answer["model"], answer["job"]) == ("Hello world", "org/tiny", job.id)
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["mesh"]["receipt"] == RECEIPT
    assert answer["finish"] == "stop"


async def test_a_reroute_is_told(tmp_path: Path) -> None:
    moved = Rerouted(2, "12D3KooW" + "B" * 44, "boreas two", 1, "worker lost")
    service = FakeService(plays(TextDelta("Hel", 1), moved, TextDelta("lo", 1), done(2)))
    result = await typed(service, tmp_path, "run", "hi")
    assert result.stdout == "Hello\n"
    assert result.stderr == "[goes on at boreas two from token 1 (worker lost)]\n"


async def test_a_stream_that_ends_in_an_error(tmp_path: Path) -> None:
    service = FakeService(plays(TextDelta("Hel", 1), NoWorker("no worker is left", hint="mesh nodes")))
    result = await typed(service, tmp_path, "run", "hi")
    assert result.exit_code == Exit.NO_WORKER
    assert result.stdout == "Hel\n"
    assert result.stderr == "mesh: no worker is left\n  hint: mesh nodes\n"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (lambda: BeyondLimits("too much"), Exit.CANNOT),
        (lambda: ModelInvalid("no GGUF"), Exit.CANNOT),
        (lambda: Overloaded("full", retry_after_s=1), Exit.NO_WORKER),
        (lambda: NotAuthorised("no issuer"), Exit.NOT_AUTHORISED),
    ],
)
async def test_failures_of_the_node(tmp_path: Path, failure: Callable[[], MeshError], expected: Exit) -> None:
    service = FakeService(failure=failure())
    result = await typed(service, tmp_path, "share")
    assert result.exit_code == expected
    assert result.stderr.startswith(f"mesh: {failure().message}\n")


async def test_an_unknown_model_name(tmp_path: Path) -> None:
    assert (await typed(FakeService(), tmp_path, "model", "rm", "nothing")).exit_code == Exit.NOT_FOUND
