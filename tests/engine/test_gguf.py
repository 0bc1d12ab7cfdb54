"""The bounded look into a GGUF file."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meshd.core.engine import ModelFile
from meshd.core.errors import ModelInvalid
from meshd.engine.gguf import GgufInfo, digest, inspect


def test_reads_what_the_file_says_of_itself(tiny: ModelFile, tiny_base: ModelFile) -> None:
    info = inspect(tiny.path)
    assert info == GgufInfo("tiny", "llama", 2048, True, Path(tiny.path).stat().st_size, 2 * 4 * (16 + 16) * 2)
    assert not inspect(tiny_base.path).has_chat_template


def test_reads_a_real_model(gemma: ModelFile) -> None:
    info = inspect(gemma.path)
    assert (info.architecture, info.context_tokens, info.has_chat_template) == ("gemma3", 32768, False)
    assert info.cache_bytes_per_token == 18 * (256 + 256) * 2


def test_every_cut_is_noticed(tiny: ModelFile, tmp_path: Path) -> None:
    whole = Path(tiny.path).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 400, 7), *range(400, len(whole), 50_021), len(whole) - 40]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelInvalid):
            inspect(str(path))


def test_one_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    entries = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    entries += text(b"split.count") + struct.pack("<IH", 2, 3)
    path = tmp_path / "part.gguf"
    path.write_bytes(head + entries + bytes(64))
    with pytest.raises(ModelInvalid, match="one part"):
        inspect(str(path))


def test_the_digest_is_sha256_of_the_whole_file(tiny: ModelFile) -> None:
    assert digest(tiny.path) == hashlib.sha256(Path(tiny.path).read_bytes()).hexdigest()
    with pytest.raises(ModelInvalid):
        digest("/nonexistent/model.gguf")


PATHOLOGICAL_MS = 20_000
"""For one file: a look takes a few ms, one that follows a hostile count would take minutes."""

changes = st.lists(st.tuples(st.integers(0, 12_000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=6)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=PATHOLOGICAL_MS)
@given(changes)
@example([(8, b"\xff" * 8)])
@example([(16, b"\xff" * 8)])
@example([(24, b"\xff" * 8)])
def test_a_mutated_header_is_read_or_refused_never_more(
    tiny: ModelFile, tmp_path: Path, mutations: list[tuple[int, bytes]]
) -> None:
    data = bytearray(Path(tiny.path).read_bytes())
    for place, change in mutations:
        data[place : place + len(change)] = change
    path = tmp_path / "mutated.gguf"
    path.write_bytes(data)
    try:
        assert inspect(str(path)).size_bytes == len(data)
    except ModelInvalid as error:
        assert error.message


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=PATHOLOGICAL_MS)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_behind_the_magic_are_refused(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "random.gguf"
    path.write_bytes(b"GGUF" + rest)
    with pytest.raises(ModelInvalid):
        inspect(str(path))
