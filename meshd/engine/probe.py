"""Looks at this machine: psutil for processor and memory, NVML for GPUs. Without a driver, or a sane one: no GPUs."""

from __future__ import annotations

import psutil
import pynvml

from meshd.core import limits
from meshd.core.ad import Gpu
from meshd.core.engine import MachineInfo


class MachineProbe:
    """Implements the node's Probe port. NVML is tried once; a machine does not grow a driver while we run."""

    def __init__(self) -> None:
        self._nvml = _nvml_starts()

    def machine(self) -> MachineInfo:
        """What the machine has now. Never raises for a missing or failing GPU."""
        memory = psutil.virtual_memory()
        return MachineInfo(
            cpu_threads=psutil.cpu_count() or 1,
            memory_bytes=memory.total,
            memory_available_bytes=memory.available,
            gpus=_gpus() if self._nvml else (),
        )


def _nvml_starts() -> bool:
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return False
    return True


def _gpus() -> tuple[Gpu, ...]:
    try:
        count = min(pynvml.nvmlDeviceGetCount(), limits.MAX_GPUS_PER_AD)
        return tuple(_gpu(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count))
    except (pynvml.NVMLError, OSError):
        return ()


def _gpu(handle: object) -> Gpu:
    name = pynvml.nvmlDeviceGetName(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return Gpu(
        name="".join(c for c in text[:100] if c.isprintable()),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
    )
