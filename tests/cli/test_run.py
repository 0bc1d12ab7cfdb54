"""`mesh run` and `mesh chat` against a streaming server."""

from __future__ import annotations

import json

from mesh_cli.exits import Exit

from tests.cli.conftest import Mesh
from tests.cli.contract_server import BROKEN_STREAM, CUT_STREAM, Daemon, chunk

CHAT = "/v1/chat/completions"


def test_the_answer_goes_to_stdout_and_the_reroute_to_stderr(mesh: Mesh, daemon: Daemon) -> None:
    result = mesh("run", "Three rivers?")
    assert result.exit_code == Exit.OK
    assert result.stdout == "The Rhine, the Elbe.\n"
    assert result.stderr == "[goes on at ceres two from token 34 (lost )]\n"
    assert daemon.asked[-1] == (
        "POST",
        CHAT,
        {
            "model": "gemma3-270m",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "Three rivers?"}],
        },
    )


def test_every_option_reaches_the_request(mesh: Mesh, daemon: Daemon) -> None:
    daemon.stream = (
        'data: {"choices": [{"index": 0, "text": "on", "finish_reason": "length"}]}',
        "data: [DONE]",
    )
    words = "run - -m qwen3-4b --raw --max-tokens 9 --temperature 0 --seed 3 --top-p 0.9 --exact --class internal"
    result = mesh(*words.split(), "--region", "eu/de", "--region", "eu/fr", stdin="go ")
    assert result.stdout == "on\n"
    assert daemon.asked == [
        (
            "POST",
            "/v1/completions",
            {
                "model": "qwen3-4b",
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 9,
                "temperature": 0.0,
                "top_p": 0.9,
                "seed": 3,
                "mesh": {"exact": True, "class": "internal", "regions": ["eu/de", "eu/fr"]},
                "prompt": "go ",
            },
        )
    ]


def test_json_is_one_object(mesh: Mesh) -> None:
    answer = json.loads(mesh("run", "--json", stdin="Three rivers?").stdout)
    assert answer["text"] == "The Rhine, the Elbe."
    assert answer["finish"] == "stop"
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["job"] == "job_" + "7a" * 16
    assert answer["reroutes"] == [{"attempt": "2", "worker": "ceres two", "at_token": "34", "reason": "lost\x1b"}]


def test_an_error_in_the_stream_is_one_line_and_its_status(mesh: Mesh, daemon: Daemon) -> None:
    daemon.stream = BROKEN_STREAM
    result = mesh("run", "x")
    assert result.exit_code == Exit.NO_WORKER
    assert result.stdout == "The Rh\n"
    assert result.stderr == "mesh: no worker is left for this job\n  hint: mesh nodes shows why\n"


def test_an_unknown_error_in_the_stream_still_means_the_job_failed(mesh: Mesh, daemon: Daemon) -> None:
    daemon.stream = ('data: {"error": {"message": "odd", "code": "odd"}}',)
    assert mesh("run", "x").exit_code == Exit.NO_WORKER


def test_a_silent_end_is_never_success(mesh: Mesh, daemon: Daemon) -> None:
    daemon.stream = CUT_STREAM
    result = mesh("run", "x", "--json")
    assert result.exit_code == Exit.NO_WORKER
    assert result.stdout == ""
    assert "broke off" in result.stderr


def test_garbage_in_the_stream(mesh: Mesh, daemon: Daemon) -> None:
    daemon.stream = ("data: {nonsense",)
    assert mesh("run", "x").exit_code == Exit.NO_WORKER


def test_a_refusal_before_the_stream(mesh: Mesh, daemon: Daemon) -> None:
    daemon.refuse("POST", CHAT, 404, "model_not_found", "no model 'x'", "mesh model list")
    assert mesh("run", "-m", "x", "hello").exit_code == Exit.NOT_FOUND


def test_no_model_anywhere(mesh: Mesh, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/models"] = (200, {"object": "list", "data": []})
    result = mesh("run", "x")
    assert result.exit_code == Exit.NOT_FOUND
    assert "mesh model add" in result.stderr


def test_an_empty_input_is_no_prompt(mesh: Mesh, daemon: Daemon) -> None:
    assert mesh("run", stdin="  \n").exit_code == Exit.USAGE
    assert daemon.asked == []


def test_chat_keeps_history_until_new(mesh: Mesh, daemon: Daemon) -> None:
    daemon.stream = (chunk("Yes."), "data: [DONE]")
    result = mesh("chat", "--system", "Be brief.", stdin="One?\nTwo?\n/new\nThree?\n/quit\nnever\n")
    assert result.exit_code == Exit.OK
    assert result.stdout == "Yes.\n" * 3
    sent = [[m["content"] for m in body["messages"]] for _, path, body in daemon.asked if path == CHAT]
    assert sent == [["Be brief.", "One?"], ["Be brief.", "One?", "Yes.", "Two?"], ["Be brief.", "Three?"]]


def test_chat_in_a_pipe_ends_with_the_failure(mesh: Mesh, daemon: Daemon) -> None:
    daemon.stream = BROKEN_STREAM
    assert mesh("chat", stdin="One?\nTwo?\n").exit_code == Exit.NO_WORKER
