"""The house plan as data, and the checks that hold source text against it.

Every check takes text and answers findings, so that the tests can show it a violation and see it caught.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500

# What a room without a clock, randomness and IO may take from the standard library.
PURE_WORDS = """
__future__ abc base64 binascii bisect codecs collections contextlib copy dataclasses enum functools hashlib heapq
hmac ipaddress itertools json math numbers operator re statistics string struct types typing unicodedata zlib
"""
PURE = frozenset(PURE_WORDS.split())

# Modules that exactly one room may import, wherever the floors would allow more.
EXCLUSIVE = {
    "llama_cpp": "engine",
    "llguidance": "engine",
    "psutil": "engine",
    "pynvml": "engine",
    "libp2p": "net",
    "multiaddr": "net",
    "noise": "net",
    "zeroconf": "net",
    "hypercorn": "api",
    "starlette": "api",
    "sqlite3": "store",
}


@dataclass(frozen=True)
class Room:
    """One package: its floor, the rooms and third-party modules it may import, and whether it must be pure."""

    floor: int
    rooms: frozenset[str] = frozenset()
    third: frozenset[str] = frozenset()
    pure: bool = False


def room(floor: int, rooms: str = "", third: str = "", pure: bool = False) -> Room:
    return Room(floor, frozenset(rooms.split()), frozenset(third.split()), pure)


ROOMS = {
    "core": room(0, pure=True),
    "policy": room(0, "core", pure=True),
    "machine": room(1, "core policy", pure=True),
    "wire": room(2, "core", "msgpack nacl base58"),
    "store": room(3, "core wire", "nacl"),
    "net": room(3, "core wire", "trio libp2p multiaddr zeroconf noise ifaddr"),
    "engine": room(3, "core", "trio msgpack llama_cpp llguidance psutil pynvml jinja2 numpy httpx"),
    "ports": room(4, "core wire"),
    "views": room(4, "core"),
    "node": room(4, "core policy machine wire ports views", "trio"),
    "contract": room(5),
    "api": room(5, "core views contract", "starlette trio hypercorn h11"),
    "app": room(6, "core policy machine wire store net engine ports views node contract api", "trio click"),
    "testing": room(4, "core policy machine wire ports", "trio httpx"),
    "cli": room(6, "core contract", "click rich httpx"),
}

# Single files that other rooms may know although the rest of their package is closed to them.
DOORS = {"meshd.node.ports": "ports", "meshd.node.views": "views", "meshd.api.contract": "contract"}

# Where a broad except may stand, if it is marked and says why: doors at which one stranger, one peer or one request
# must not end the daemon, and the top supervisor.
BROAD_EXCEPT_ROOMS = frozenset({"net", "node", "api", "app"})


def module_of(path: Path) -> str:
    """The dotted name under which a file of the repository is imported."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "cli":
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room a module of ours belongs to; None for meshd's own __init__ and for anything foreign."""
    for door, name in DOORS.items():
        if module == door or module.startswith(door + "."):
            return name
    parts = module.split(".")
    if parts[0] == "mesh_cli":
        return "cli"
    return parts[1] if parts[0] == "meshd" and len(parts) > 1 else None


def sources() -> list[Path]:
    """Every Python file of the product."""
    return sorted([*(ROOT / "meshd").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import, lazy, type-only and literal dynamic ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if base else alias.name
        elif isinstance(node, ast.Call) and _callee(node).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def _callee(node: ast.Call) -> str:
    return ast.unparse(node.func)


def import_findings(text: str, module: str, is_package: bool = False) -> list[str]:
    """What in this module's imports breaks the house plan."""
    name = room_of(module)
    if name is None:
        return []
    if name not in ROOMS:
        return [f"{module}: there is no room called {name!r} in the house plan"]
    found = []
    for line, target in imports(ast.parse(text), module, is_package):
        reason = _objection(name, ROOMS[name], target)
        if reason:
            found.append(f"{module}:{line}: {reason}")
    return found


def _objection(name: str, plan: Room, target: str) -> str:
    top = target.split(".")[0]
    if top in ("meshd", "mesh_cli"):
        return _room_objection(name, plan, target)
    if EXCLUSIVE.get(top, name) != name:
        return f"{target} belongs to {EXCLUSIVE[top]} alone"
    if top in sys.stdlib_module_names:
        return f"{top} is not for a pure room" if plan.pure and top not in PURE else ""
    return "" if top in plan.third or EXCLUSIVE.get(top) == name else f"{name} may not import {top}"


def _room_objection(name: str, plan: Room, target: str) -> str:
    other = room_of(target)
    if other is None or other == name or other in plan.rooms:
        return ""
    if target in ("meshd.node", "meshd.api") and any(door.startswith(target) for door in DOORS):
        return f"{name} may not import the package {target}"
    return f"{name} (floor {plan.floor}) may not import {other}"


def shape_findings(text: str, where: str) -> list[str]:
    """Functions and files that grew too long."""
    found = []
    count = text.count("\n")
    if count > MAX_FILE_LINES:
        found.append(f"{where}: {count} lines, more than {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = _code_lines(node)
            if length > MAX_FUNCTION_LINES:
                found.append(f"{where}:{node.lineno}: {node.name} has {length} lines, more than {MAX_FUNCTION_LINES}")
    return found


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def broad_except_findings(text: str, module: str) -> list[str]:
    """Handlers that swallow everything where that is not allowed, or not marked with its reason."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises_again(node, module):
            line = lines[node.lineno - 1]
            if room_of(module) not in BROAD_EXCEPT_ROOMS:
                found.append(f"{module}:{node.lineno}: a broad except may not stand here")
            elif "# noqa: BLE001 - " not in line:
                found.append(f"{module}:{node.lineno}: a broad except needs '# noqa: BLE001 - ' and the reason")
        elif isinstance(node, ast.Call) and _callee(node).endswith("suppress") and any(map(_is_broad, node.args)):
            found.append(f"{module}:{node.lineno}: suppress() of everything")
    return found


def _is_broad(node: ast.expr | None) -> bool:
    if node is None:
        return True
    if isinstance(node, ast.Tuple):
        return any(map(_is_broad, node.elts))
    return isinstance(node, ast.Name) and node.id in ("Exception", "BaseException")


def _raises_again(node: ast.ExceptHandler, module: str) -> bool:
    """Cleaning up and raising is no swallowing; nor is the net's translation of whatever libp2p may raise."""
    last = node.body[-1]
    return isinstance(last, ast.Raise) and (last.exc is None or (last.cause is not None and room_of(module) == "net"))


def sleep_findings(text: str, where: str) -> list[str]:
    """Sleeps of a literal length in tests, outside virtual time. A checkpoint, ``sleep(0)``, is no sleep."""
    found = []
    tree = ast.parse(text)
    stack: list[tuple[ast.AST, bool]] = [(tree, any(map(_marks_the_module, tree.body)))]
    while stack:
        node, virtual = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            virtual = virtual or any("mock_clock" in ast.unparse(mark) for mark in node.decorator_list)
        if isinstance(node, ast.Call) and not virtual and _sleeps_literally(node):
            found.append(f"{where}:{node.lineno}: {ast.unparse(node)}")
        stack.extend((child, virtual) for child in ast.iter_child_nodes(node))
    return found


def _marks_the_module(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Assign)
        and ast.unparse(node).startswith("pytestmark")
        and "mock_clock" in ast.unparse(node)
    )


def _sleeps_literally(node: ast.Call) -> bool:
    if _callee(node).split(".")[-1] != "sleep" or not node.args:
        return False
    length = node.args[0]
    return isinstance(length, ast.Constant) and length.value != 0
