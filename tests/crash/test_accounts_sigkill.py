"""Usage is exact whatever the router dies of: it is what the audit log comes to, and nothing that was handled is missing."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from served import Place, wait_for
from servers import free_port
from test_accounts import recomputed

APP = """
import asyncio
import os
from eventrouter import fixed, on
from eventrouter_http import http

handled = os.open("handled.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@on(http("POST /good", mode="event"), tags={"team": "red"})
async def good(number: int) -> None:
    os.write(handled, b"%d\\n" % number)

@on(http("POST /bad", mode="event"), retries=1, backoff=fixed(0), tags={"team": "Red"})
async def bad(number: int) -> None:
    raise ValueError("always")

@on(http("POST /slow", mode="event"))
async def slow(number: int) -> None:
    await asyncio.sleep(0.11)
"""


def feed(port: int, over: threading.Event, accepted: Counter[str]) -> None:
    number = 0
    while not over.is_set():
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            while not over.is_set():
                number += 1
                path = random.choice(("good", "good", "bad", "slow"))
                connection.request("POST", f"/{path}", str(number))
                answer = connection.getresponse()
                answer.read()
                accepted[path] += answer.status == 202
        except (OSError, HTTPException):
            time.sleep(0.02)
        finally:
            connection.close()


def test_usage_is_what_the_audit_log_comes_to_after_sigkills(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text(f"[http]\nport = {port}\n[audit]\ninvocations = true\nsegment = 100\n")
    accepted: Counter[str] = Counter()
    over = threading.Event()
    feeders = [threading.Thread(target=feed, args=(port, over, accepted)) for _ in range(4)]
    with Place(tmp_path) as place:
        for turn in range(5):
            place.serve()
            for feeder in feeders if turn == 0 else ():
                feeder.start()
            before = accepted.total()
            wait_for(lambda before=before: accepted.total() > before + 60)  # type: ignore[misc]
            place.stop(signal.SIGKILL)
        over.set()
        for feeder in feeders:
            feeder.join()
        place.serve()
        wait_for(lambda: _idle(place))
        assert place.stop() == 0
        usage = json.loads(place.run("usage", "--json"))
        records = json.loads(place.run("audit", "query", "--json", "--limit", "0"))
        assert place.run("audit", "verify").startswith("whole: ")
        by_tag = json.loads(place.run("usage", "--json", "--by", "tag:team"))
    told = {}
    for row in usage["rows"]:
        billed, memory = round(row["billed_seconds"] * 1000), round(row["gb_seconds"] * 1024 * 1000)
        told[row["group"][0]] = row["invocations"], row["errors"], row["throttles"], billed, memory
    assert told == recomputed(records)
    handled = (tmp_path / "handled.txt").read_text().split()
    # what was handled and not yet settled when the router died was handled again, and only what was settled is billed
    assert len(set(handled)) <= told["good"][0] <= len(handled)
    assert told["good"][0] >= accepted["good"]
    assert told["bad"][0] == told["bad"][1] >= 2 * accepted["bad"]
    assert {row["group"][0]: row["invocations"] for row in by_tag["rows"]} == {
        "": told["slow"][0], "red": told["good"][0], "Red": told["bad"][0],
    }  # fmt: skip


def _idle(place: Place) -> Any:
    from eventrouter.control import ask

    functions = ask(place.folder / ".eventrouter", "status")["functions"]
    return all(
        not counts["active"] and not counts["journal"].get("waiting") and not counts["journal"].get("running")
        for counts in functions.values()
    )
