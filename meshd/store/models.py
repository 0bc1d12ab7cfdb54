"""Registered model files: name, digest, place and size. The files themselves stay where the owner has them."""

from __future__ import annotations

from meshd.core.engine import ModelFile
from meshd.core.errors import AlreadyDone, NotFound
from meshd.core.ids import ModelDigest
from meshd.store.db import Database

_COLUMNS = "name, digest, path, size_bytes"


def add_model(database: Database, model: ModelFile) -> None:
    """Register ``model``, which the caller verified. Raises AlreadyDone when the name is taken by another file;
    registering the same bytes again only updates where they are."""
    with database.transaction() as connection:
        found = connection.execute("SELECT digest FROM models WHERE name = ?", (model.name,)).fetchone()
        if found is not None and found[0] != model.digest:
            raise AlreadyDone(
                f"another file is registered as {model.name}", hint="choose another --name, or mesh model rm first"
            )
        row = (model.name, model.digest, model.path, model.size_bytes)
        connection.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?)", row)


def list_models(database: Database) -> tuple[ModelFile, ...]:
    """All registered models by name."""
    return tuple(_model(row) for row in database.rows(f"SELECT {_COLUMNS} FROM models ORDER BY name"))


def remove_model(database: Database, name: str) -> ModelFile:
    """Unregister the model; its file stays. Returns what it was. Raises NotFound."""
    with database.transaction() as connection:
        row = connection.execute(f"DELETE FROM models WHERE name = ? RETURNING {_COLUMNS}", (name,)).fetchone()
    if row is None:
        raise NotFound(f"no model {name[:200]!r} here", hint="mesh model list shows them")
    return _model(row)


def _model(row: tuple[object, ...]) -> ModelFile:
    name, digest, path, size_bytes = row
    return ModelFile(str(name), ModelDigest(str(digest)), str(path), int(str(size_bytes)))
