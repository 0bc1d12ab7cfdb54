"""`mesh model add|list|rm`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mesh_cli.common import connect, emit, emit_json, say
from mesh_cli.group import Group, Verb, json_option
from meshd.api import contract


@click.group("model", cls=Group)
def command() -> None:
    """Add, list and remove models. A model is a GGUF file."""


@command.command("add", cls=Verb, examples=[("mesh model add ~/models/gemma.gguf --name gemma3-270m", "offer it here")])
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="What apps call it (default: what the file says).")
@json_option
@click.pass_context
def add(context: click.Context, file: Path, name: str | None, as_json: bool) -> None:
    """Check a GGUF file and offer it on this node. The file stays where it is."""
    body: dict[str, str] = {"path": os.path.abspath(file)} | ({"name": name} if name else {})
    with connect(context) as api:
        from mesh_cli.client import MODEL_TIMEOUT_S

        if not as_json:
            say(f"checking {file.name} ...")
        model = api.post(contract.MODELS, body, timeout_s=MODEL_TIMEOUT_S)
    from mesh_cli.render.models import model_added

    emit(model, as_json, lambda: model_added(model))


@command.command("list", cls=Verb, examples=[("mesh model list", "models of the whole mesh, and where they are")])
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """The models of the mesh."""
    with connect(context) as api:
        view = api.get(contract.MODELS)
    from mesh_cli.render.models import model_table

    emit(view, as_json, lambda: model_table(view["models"]))


@command.command("rm", cls=Verb, examples=[("mesh model rm gemma3-270m", "the file itself is kept")])
@click.argument("name")
@json_option
@click.pass_context
def rm(context: click.Context, name: str, as_json: bool) -> None:
    """Stop offering a model on this node. The file is not touched."""
    with connect(context) as api:
        api.delete_model(name)
    if as_json:
        emit_json({"ok": True, "name": name})
    else:
        click.echo(f"{name} is not offered here any more")
