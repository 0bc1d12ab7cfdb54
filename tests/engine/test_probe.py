"""The machine probe."""

from __future__ import annotations

import pytest

from meshd.engine.probe import MachineProbe


def test_reports_this_machine() -> None:
    machine = MachineProbe().machine()
    assert machine.cpu_threads >= 1
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    assert MachineProbe().machine().gpus == ()
