"""Stands in for the daemon program: ``fake_program.py --home DIR OPERATION ...``.

``plan.json`` beside the home says what each operation prints and returns; what it was given is appended to
``given.jsonl``. The operation ``run`` without a plan serves the contract until it is asked to stop.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    home, operation = Path(sys.argv[2]), sys.argv[3]
    beside = home.parent
    stdin = "" if operation == "run" else sys.stdin.read()
    with (beside / "given.jsonl").open("a") as given:
        given.write(json.dumps({"arguments": sys.argv[3:], "stdin": stdin}) + "\n")
    plan = json.loads((beside / "plan.json").read_text()).get(operation)
    if plan is None:
        return serve(home)
    print(plan["prints"], file=sys.stderr if operation == "run" else sys.stdout)
    return int(plan["returns"])


def serve(home: Path) -> int:
    sys.path.insert(0, str(ROOT))
    from tests.cli.contract_server import Daemon, serving, write_home

    with serving(Daemon()) as daemon:
        write_home(home, daemon.url)
        daemon.stopped.wait(60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
