"""The command: run benchmarks by name, print a line each, or JSON."""

from __future__ import annotations

import argparse
import importlib

import msgspec

NAMES = ("dispatch", "durable", "http", "mqtt", "start")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} [default: all]")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each [default: 5]")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args()
    for name in given.names or NAMES:
        if name not in NAMES:
            parser.error(f"no benchmark is named {name!r}; there are {', '.join(NAMES)}")
        for result in importlib.import_module(f"benchmarks.{name}").run(given.rounds):
            print(msgspec.json.encode(result).decode() if given.json else result.line(), flush=True)


if __name__ == "__main__":
    main()
