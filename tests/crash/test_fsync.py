"""What the journal asks of the disk, seen from outside: an acknowledged batch has been fsynced, and a crowd shares one fsync."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from servers import program

SCRIPT = """
import asyncio, os, sys
from pathlib import Path
from eventrouter.clock import SystemClock
from eventrouter.journal.protocol import Claim
from eventrouter.journal.sqlite import SqliteJournal
from eventrouter.model import Event

def batch():
    return [Claim("f", Event("local", "local.put", "a", b"0")) for _ in range(10)]

def say(word):
    os.write(2, word)

async def main(one_by_one, at_once):
    journal = SqliteJournal(Path("journal.db"), clock=SystemClock())
    await journal.open()
    for _ in range(one_by_one):
        say(b"<accept>")
        await journal.accept(batch())
        say(b"<acknowledged>")
    say(b"<crowd>")
    await asyncio.gather(*[journal.accept(batch()) for _ in range(at_once)])
    say(b"<all acknowledged>")
    await journal.close()

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""
BATCHES = 50
CROWD = 200


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One letter for each call: W, a write to the write-ahead log, and S, its fsync; and what the script says between them."""
    folder = tmp_path_factory.mktemp("traced")
    file = folder / "trace.txt"
    strace = [program("strace", "strace"), "-f", "-y", "-s", "32", "-e", "trace=fsync,fdatasync,pwrite64,write", "-o", str(file)]
    tried = subprocess.run([*strace, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no process may be traced here: {tried.stderr.strip().splitlines()[-1]}")
    command = [*strace, sys.executable, "-c", SCRIPT, str(BATCHES), str(CROWD)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    story, syncing = "", set()
    for line in file.read_text().splitlines():
        thread, _, call = line.partition(" ")
        if found := re.search(r'write\(2<[^>]*>, "(<[a-z ]+>)"', call):
            story += found[1]
        elif "resumed>" in call:  # an fsync counts when it returns
            story += "S" * (thread in syncing)
            syncing.discard(thread)
        elif "journal.db-wal>" in call:
            if "pwrite64(" in call:
                story += "W"
            elif "unfinished" in call:
                syncing.add(thread)
            else:
                story += "S"
    return story


def test_an_acknowledged_batch_has_been_fsynced(trace: str) -> None:
    """The last thing before the acknowledgement is the fsync of what was written for it."""
    between = re.findall(r"<accept>(.*?)<acknowledged>", trace)
    assert len(between) == BATCHES
    assert [calls for calls in between if not re.fullmatch("S*W+S", calls)] == []


def test_a_crowd_shares_an_fsync(trace: str) -> None:
    (calls,) = re.findall(r"<crowd>(.*?)<all acknowledged>", trace)
    assert calls.endswith("WS")
    assert calls.count("S") <= CROWD // 20, calls
