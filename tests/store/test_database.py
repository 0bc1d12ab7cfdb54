"""Receipts, peers, models, share, counters, and the database under them."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from meshd.core.engine import ModelFile
from meshd.core.errors import AlreadyDone, HomeUnusable, NotFound
from meshd.core.ids import AttemptId, JobId, ModelDigest
from meshd.core.receipt import Receipt
from meshd.core.share import Share
from meshd.store.counters import next_boot, next_serial
from meshd.store.db import Database
from meshd.store.home import Home
from meshd.store.models import add_model, list_models, remove_model
from meshd.store.peers import MAX_PEERS, recall_peers, remember_peer
from meshd.store.receipts import append_receipts, list_receipts, verify_ledger
from meshd.store.settings import load_share, save_share
from meshd.wire.keys import NodeKey
from meshd.wire.receipt import receipt_id, sign_receipt
from tests.wire.samples import JOB, NOW_S, SUBMITTER, WORKER, receipt_of


def receipts_of(count: int) -> list[tuple[Receipt, bytes]]:
    made = [replace(receipt_of(), attempt=AttemptId(JOB, n + 1)) for n in range(count)]
    return [(receipt, sign_receipt(receipt, WORKER)) for receipt in made]


def edit(home: Home, statement: str) -> None:
    connection = sqlite3.connect(home.database)
    connection.execute(statement)
    connection.commit()
    connection.close()


# -- receipts


def test_receipts_are_kept_in_order_and_verify(database: Database) -> None:
    made = receipts_of(5)
    append_receipts(database, made[:2])
    append_receipts(database, made[2:])
    kept = list_receipts(database)
    assert [k.receipt for k in kept] == [r for r, _ in reversed(made)]
    assert [k.number for k in kept] == [5, 4, 3, 2, 1]
    assert [k.id for k in kept] == [receipt_id(s) for _, s in reversed(made)]
    assert (verify_ledger(database).good, verify_ledger(database).fault) == (5, "")


def test_listing_is_bounded_and_by_job(database: Database) -> None:
    other = replace(receipt_of(), attempt=AttemptId(JobId("job_" + "ff" * 16), 1))
    append_receipts(database, [*receipts_of(3), (other, sign_receipt(other, WORKER))])
    assert len(list_receipts(database, limit=2)) == 2
    assert [k.receipt for k in list_receipts(database, job=other.attempt.job)] == [other]
    assert list_receipts(database, limit=-1) == ()


def test_the_same_receipt_is_kept_once(database: Database) -> None:
    made = receipts_of(2)
    append_receipts(database, [made[0], made[0]])
    append_receipts(database, made)
    assert verify_ledger(database).good == len(list_receipts(database)) == 2


@pytest.mark.parametrize(
    ("damage", "good", "fault"),
    [
        ("DELETE FROM receipts WHERE number = 3", 2, "row 3 is missing"),
        ("DELETE FROM receipts WHERE number = 1", 0, "row 1 is missing"),
        ("UPDATE receipts SET chain = zeroblob(32) WHERE number = 4", 3, "row 4: the chain"),
        ("UPDATE receipts SET signed = zeroblob(10) WHERE number = 2", 1, "row 2"),
        ("UPDATE receipts SET id = 'rcpt_x' WHERE number = 2", 1, "row 2: the id"),
    ],
)
def test_a_changed_ledger_shows(home: Home, database: Database, damage: str, good: int, fault: str) -> None:
    append_receipts(database, receipts_of(5))
    edit(home, damage)
    verdict = verify_ledger(database)
    assert verdict.good == good
    assert verdict.fault.startswith(fault)


def test_two_exchanged_receipts_show(home: Home, database: Database) -> None:
    append_receipts(database, receipts_of(3))
    edit(home, "UPDATE receipts SET number = 99 WHERE number = 1")
    edit(home, "UPDATE receipts SET number = 1 WHERE number = 2")
    edit(home, "UPDATE receipts SET number = 2 WHERE number = 99")
    assert verify_ledger(database).good == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from meshd.store.db import Database
from meshd.store.receipts import append_receipts
from tests.store.test_database import receipts_of
database = Database(Path(sys.argv[1]))
append_receipts(database, receipts_of(7))
with database.transaction() as connection:
    connection.execute("DELETE FROM receipts")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_keeps_what_was_kept_and_nothing_of_a_broken_transaction(home: Home) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(home.database)], check=False, timeout=60)
    assert done.returncode == -9
    with Database(home.database) as database:
        assert (verify_ledger(database).good, verify_ledger(database).fault) == (7, "")


# -- peers, models, share, counters


def test_the_peer_book_is_newest_first_and_bounded(database: Database) -> None:
    remember_peer(database, WORKER.node, ["/ip4/10.0.0.1/tcp/1"], NOW_S)
    remember_peer(database, SUBMITTER.node, ["/ip4/10.0.0.2/tcp/1"] * 40, NOW_S + 1)
    remember_peer(database, WORKER.node, ["/ip4/10.0.0.3/tcp/1"], NOW_S + 2)
    recalled = recall_peers(database)
    assert recalled[0] == (WORKER.node, ("/ip4/10.0.0.3/tcp/1",))
    assert len(recalled[1][1]) == 16
    for n in range(MAX_PEERS):
        remember_peer(database, NodeKey(n.to_bytes(32, "big")).node, [], NOW_S + 10 + n)
    assert len(recall_peers(database)) == MAX_PEERS
    assert WORKER.node not in [node for node, _ in recall_peers(database)]


def test_models(database: Database) -> None:
    one = ModelFile("gemma", ModelDigest("ab" * 32), "/models/one.gguf", 2**33)
    add_model(database, one)
    moved = replace(one, path="/elsewhere/one.gguf")
    add_model(database, moved)
    with pytest.raises(AlreadyDone):
        add_model(database, replace(one, digest=ModelDigest("cd" * 32)))
    assert list_models(database) == (moved,)
    assert remove_model(database, "gemma") == moved
    with pytest.raises(NotFound):
        remove_model(database, "gemma")
    assert list_models(database) == ()


def test_nothing_is_shared_until_it_is_saved(home: Home, database: Database) -> None:
    assert load_share(database) == Share()
    assert not load_share(database).enabled
    share = Share(True, 0.25, 4 * 2**30, False)
    save_share(database, share)
    with Database(home.database) as later:
        assert load_share(later) == share
    edit(home, "UPDATE settings SET value = x'00'")
    with pytest.raises(HomeUnusable):
        load_share(database)


def test_counters_only_grow_over_restarts(home: Home, database: Database) -> None:
    assert [next_boot(database), next_boot(database), next_serial(database)] == [1, 2, 1]
    with Database(home.database) as later:
        assert next_boot(later) == 3
    assert next_boot(database) == 4


# -- the database itself


def test_the_database_is_private(home: Home, database: Database) -> None:
    next_boot(database)
    for path in home.path.glob("node.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        connection.execute("INSERT INTO counters VALUES ('x', 1)")
        raise ZeroDivisionError
    assert database.rows("SELECT * FROM counters") == []
    next_boot(database)


def test_what_must_not_be_lost_is_synchronised(database: Database) -> None:
    next_boot(database)
    assert database.rows("PRAGMA synchronous") == [(2,)]
    assert database.rows("PRAGMA journal_mode") == [("wal",)]
    remember_peer(database, WORKER.node, [], NOW_S)
    assert database.rows("PRAGMA synchronous") == [(1,)]
    next_boot(database)
    assert database.rows("PRAGMA synchronous") == [(2,)]


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_database_is_told_with_a_hint(home: Home, content: bytes) -> None:
    home.database.write_bytes(content)
    with pytest.raises(HomeUnusable) as caught:
        Database(home.database)
    assert caught.value.hint


def test_a_later_schema_is_not_touched(home: Home, database: Database) -> None:
    database.close()
    edit(home, "PRAGMA user_version = 99")
    with pytest.raises(HomeUnusable, match="later version"):
        Database(home.database)


def test_a_closed_database_is_told_not_crashed(database: Database) -> None:
    database.close()
    with pytest.raises(HomeUnusable):
        next_boot(database)
