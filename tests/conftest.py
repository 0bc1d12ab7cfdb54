"""Runs `async def` tests under trio; `mock_clock` gives them virtual time."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings

# Hypothesis would fail an example that takes 200 ms, or a generator that is slow: on a busy machine, any.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test function to its end in a fresh trio run; other tests go pytest's own way."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    clock = trio.testing.MockClock(autojump_threshold=0) if pyfuncitem.get_closest_marker("mock_clock") else None
    trio.run(functools.partial(function, **arguments), clock=clock)
    return True
