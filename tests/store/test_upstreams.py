"""Registered upstreams, and the step from a database without them."""

from __future__ import annotations

import sqlite3
import stat

import pytest

from meshd.core.classes import DataClass
from meshd.core.engine import ModelFile
from meshd.core.errors import AlreadyDone, HomeUnusable, NotFound
from meshd.core.ids import ModelDigest
from meshd.core.upstream import Upstream
from meshd.store.db import SCHEMA_VERSION, Database
from meshd.store.home import Home
from meshd.store.models import add_model, list_models
from meshd.store.upstreams import add_upstream, list_upstreams, remove_upstream

BIG = Upstream("big", "https://llm.example/v1", "big-model", DataClass.PUBLIC, 4, 8192, "secret")
SMALL = Upstream("a-small", "http://127.0.0.1:8000/v1", "small")


def test_what_was_registered_comes_back_whole_and_in_order(home: Home) -> None:
    with Database(home.database) as database:
        add_upstream(database, BIG)
        add_upstream(database, SMALL)
    with Database(home.database) as database:
        assert list_upstreams(database) == (SMALL, BIG)
    assert stat.S_IMODE(home.database.stat().st_mode) == 0o600, "keys are in it"


def test_a_name_and_a_model_of_a_server_are_registered_once(database: Database) -> None:
    add_upstream(database, BIG)
    for again in (Upstream("big", SMALL.url, "other"), Upstream("other", BIG.url, BIG.model)):
        with pytest.raises(AlreadyDone):
            add_upstream(database, again)
    assert list_upstreams(database) == (BIG,)


def test_what_is_removed_is_gone_with_its_key(database: Database) -> None:
    add_upstream(database, BIG)
    assert remove_upstream(database, "big") == BIG
    with pytest.raises(NotFound):
        remove_upstream(database, "big")
    assert database.rows("SELECT key FROM upstreams") == []


def test_a_damaged_row_is_no_upstream(home: Home, database: Database) -> None:
    add_upstream(database, BIG)
    with sqlite3.connect(home.database) as other:
        other.execute("UPDATE upstreams SET url = 'file:///etc'")
    other.close()
    with pytest.raises(HomeUnusable, match="damaged") as failed:
        list_upstreams(database)
    assert "secret" not in str(failed.value)


def test_a_database_of_the_first_version_keeps_what_it_has(home: Home) -> None:
    model = ModelFile("tiny", ModelDigest("ab" * 32), "/m.gguf", 7)
    with Database(home.database) as database:
        add_model(database, model)
    with sqlite3.connect(home.database) as old:
        old.execute("DROP TABLE upstreams")
        old.execute("PRAGMA user_version = 1")
    old.close()
    with Database(home.database) as database:
        assert list_models(database) == (model,) and list_upstreams(database) == ()
        add_upstream(database, SMALL)
        assert database.rows("PRAGMA user_version") == [(SCHEMA_VERSION,)]
