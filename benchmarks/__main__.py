"""The command: run benchmarks by name, print a table of each, or JSON."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import msgspec

from benchmarks.measure import end_in_order

NAMES = ("dispatch", "durable", "http", "mqtt", "process", "calls", "start", "backlog", "patterns", "routes", "fanout", "accounts")
ON_REQUEST = ("soak", "stages")
WITH_PEERS = ("durable",)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} [default: these]; soak, stages")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each [default: 5]")
    parser.add_argument("--minutes", type=float, default=10, help="that soak goes on [default: 10]")
    parser.add_argument(
        "--peers", type=Path, nargs="?", const=Path(".peers"), metavar="FOLDER",
        help="measure other libraries, too; each is installed, once, in an environment of its own in FOLDER [default: .peers]",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    end_in_order()
    for name in given.names or NAMES:
        if name not in NAMES + ON_REQUEST:
            parser.error(f"no benchmark is named {name!r}; there are {', '.join(NAMES + ON_REQUEST)}")
        options = {"peers": given.peers} if name in WITH_PEERS else {}
        for result in importlib.import_module(f"benchmarks.{name}").run(given.minutes if name == "soak" else given.rounds, **options):
            print(msgspec.json.encode(result).decode() if given.json else result.line(), flush=True)


if __name__ == "__main__":
    main()
