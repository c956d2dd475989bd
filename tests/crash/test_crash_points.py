"""Whatever moment the router dies at: each event that was accepted is in exactly one state, and ends well at the next start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import apsw
import pytest

from eventrouter.crashpoints import POINTS, STATUS, VARIABLE
from eventrouter.model import Event
from served import Place, wait_for
from servers import free_port
from support import in_segments

HERE = Path(__file__).parent
STATES = {0: "waiting", 1: "running", 2: "dead", 3: "done"}


def drive(folder: Path, count: int, crash_at: str = "") -> int:
    environment = {**os.environ, VARIABLE: crash_at, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, HERE / "driver.py", folder, str(count)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, STATUS), done.stdout + done.stderr
    return done.returncode


def ids(folder: Path, name: str) -> list[str]:
    file = folder / name
    return file.read_text().split() if file.exists() else []


def rows(folder: Path) -> list[tuple[str, str]]:
    """(event id, state) of each row in the journal."""
    journal = folder / ".eventrouter" / "journal.db"
    if not journal.exists():
        return []
    reader = apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        if not reader.execute("SELECT count(*) FROM sqlite_schema").get:  # it died before there was one
            return []
        found = [(Event.unpack(packed).id, STATES[state]) for packed, state in reader.execute("SELECT event, state FROM invocation")]
        return found + [(event.id, "waiting") for *_, event in in_segments(reader)]
    finally:
        reader.close()


@pytest.mark.parametrize("turn", [1, 2, 5, 23])
@pytest.mark.parametrize("point", POINTS)
def test_each_accepted_event_is_in_one_state_and_ends_well(point: str, turn: int, tmp_path: Path) -> None:
    assert drive(tmp_path, 60, f"{point}:{turn}") in (STATUS, 0 if turn == 23 else STATUS), f"{point} was not reached {turn} times"
    accepted = ids(tmp_path, "accepted.txt")
    found = rows(tmp_path)
    times = Counter(event for event, _ in found)
    assert set(accepted) <= set(times), "an accepted event is lost"
    assert set(times.values()) <= {1}, "an event is in two states"
    finished = set(ids(tmp_path, "handled.txt"))
    assert {event for event, state in found if state == "done"} <= finished, "done, and no handler has seen it"
    assert drive(tmp_path, 0) == 0
    assert {state for _, state in rows(tmp_path)} <= {"done"}, "something is left"
    assert set(times) <= set(ids(tmp_path, "handled.txt"))


APP = """
import os
from eventrouter import on
from eventrouter_http import http
from eventrouter_mqtt import mqtt
from eventrouter_s3 import S3Object, s3

got = os.open("got.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@on(s3("box"))
async def file(it: S3Object) -> None:
    os.write(got, f"{it.key}\\n".encode())

@on(mqtt("box/+"))
async def message(text: str) -> None:
    os.write(got, f"{text}\\n".encode())

@on(http("POST /box", mode="event"))
async def request(text: str) -> None:
    os.write(got, f"{text}\\n".encode())
"""


def got(place: Place) -> Counter[str]:
    return Counter(ids(place.folder, "got.txt"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """With a bucket, a broker and a port of its own."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text(f'[http]\nport = {free_port()}\n[mqtt]\nbroker = "embedded"\nport = {free_port()}\n')
    return Place(tmp_path)


@pytest.mark.parametrize("point", ["commit.before", "commit.after", "receipt.before", "ack.before", "ack.after"])
def test_a_bucket_and_a_death(place: Place, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with place:
        place.serve()
        place.stop()
        wanted = {f"{n}.txt" for n in range(30)}
        for name in wanted:
            (place.folder / "buckets/box" / name).write_text(name)
        monkeypatch.setenv(VARIABLE, f"{point}:{2 if point.startswith('commit') else 1}")
        assert place.start().wait(30) == STATUS
        monkeypatch.delenv(VARIABLE)
        place.serve()
        wait_for(lambda: set(got(place)) == wanted)
        place.stop()
    twice = {name: count for name, count in got(place).items() if count > 1}
    assert not twice or point in ("ack.after", "commit.after"), f"reported twice, though known by their ids: {twice}"


@pytest.mark.parametrize("point", ["commit.before", "commit.after", "receipt.before", "ack.before"])
def test_a_request_and_a_death(place: Place, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What got its 202 is handled; what did not is sent again by its client."""
    with place:
        place.serve()
        place.stop()
        monkeypatch.setenv(VARIABLE, f"{point}:{12 if point.startswith('commit') else 5}")  # there are commits before it is ready
        place.serve()
        answered = set()
        for n in range(20):
            done = place.curl("/box", "-d", str(n), "-o", "/dev/null", "-w", "%{http_code}", check=False)
            if done != "202":
                break
            answered.add(str(n))
        assert place.router is not None
        assert place.router.wait(30) == STATUS
        assert len(answered) < 20
        monkeypatch.delenv(VARIABLE)
        place.serve()
        wait_for(lambda: answered <= set(got(place)))
        place.stop()
    assert set(got(place)) <= {str(n) for n in range(20)}
