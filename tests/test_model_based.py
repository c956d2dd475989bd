"""Journal and engine against a model: hypothesis draws what happens, and after each step the file's rows are looked at.

CI runs the same few examples each time. By hand, `HYPOTHESIS_EXAMPLES=2000 pytest tests/test_model_based.py` draws others. A failure
is shrunk, for up to five minutes, and printed as the steps that lead to it. The journal's thread is a real one: "Flaky" means that a
failure depends on when it commits; the printed steps still lead near it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import apsw
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventrouter import App, Batch, Event, PartialFailure, Plugin, Queue, Reject, Retry, Source, Terms, fixed, new_id, on
from eventrouter.clock import ManualClock
from eventrouter.errors import JournalError
from eventrouter.journal import writer
from eventrouter.journal.protocol import Claim, Fresh, Ledger, LetterQuery, claim_id
from eventrouter.journal.schema import PARKED, RUNNING, WAITING
from eventrouter.journal.sqlite import SqliteJournal, _closed
from eventrouter.journal.writer import Commit
from eventrouter.model import Dead, Decision, Done, Release, RetryAt
from eventrouter.plugins import Plugins
from support import LOCAL, LocalTrigger, in_segments, local, make_app

T = TypeVar("T")
DEAD = 2
DEDUPE = 1000.0
MEMORY = Path("/dev/shm")  # thousands of commits; what fsync is for can't be seen by a process anyway
EXAMPLES = os.environ.get("HYPOTHESIS_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 60),
    stateful_step_count=40,
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


class Row(NamedTuple):
    seq: int
    state: int
    attempts: int
    due: float
    function: str
    key: str | None
    number: int


Owed = tuple[str, int]  # a function or queue, and the number of the event


def read_rows(path: Path, journal: SqliteJournal | None = None) -> list[Row]:
    """As another process sees them, so that only what is committed counts; of what waits, what the journal knows to run."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    found = connection.execute("SELECT seq, state, attempts, due, function, key, event FROM invocation ORDER BY seq").fetchall()
    rows = [Row(*row, Event.unpack(packed).json()["n"]) for *row, packed in found]
    taken = set(journal._database.taken) if journal is not None else set()
    handed = journal._database.segments if journal is not None else {}
    for seq, accepted, function, event in in_segments(connection):
        rows.append(Row(seq, WAITING, 0, accepted, function, None, event.json()["n"]))
        taken |= {seq for segment in handed.values() if segment.seq <= seq < segment.seq + len(segment.done)}
    connection.close()
    return [row._replace(state=RUNNING) if row.seq in taken else row for row in sorted(rows)]


def check_keys(rows: Sequence[Row]) -> None:
    """Of the live rows of a key the first waits, or the first few run; the rest is parked."""
    keys: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.key is not None and row.state < DEAD:
            keys.setdefault((row.function, row.key), []).append(row.state)
    for place, states in keys.items():
        rest = states[states.count(RUNNING) or 1 :]
        assert states[0] != PARKED, f"{place}: {states}"
        assert set(rest) <= {PARKED}, f"{place}: {states}"


class Disk:
    """Fails every commit of a journal while it is full."""

    def __init__(self) -> None:
        self.full = False

    def under(self, journal: SqliteJournal) -> None:
        real = journal._database.commit

        def commit() -> None:
            if self.full:
                raise apsw.FullError("database or disk is full")
            real()

        journal._database.commit = commit  # type: ignore[method-assign]


async def die(journal: SqliteJournal, disk: Disk, *, lost: bool) -> None:
    """Leave in the files what a killed process leaves. lost: what was not yet committed is."""
    disk.full |= lost
    journal._marks.close = lambda: None  # type: ignore[method-assign]
    with suppress(JournalError):
        await journal.close()
    disk.full = False


class Machine(RuleBasedStateMachine):
    """A folder, an event loop, and a clock that stands still."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.faults.append(f"{context.get('message')}: {context.get('exception')!r}"))
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.clock = ManualClock()
        self.disk = Disk()
        self.faults: list[str] = []
        self.number = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def in_time() -> T:
            async with asyncio.timeout(10):
                return await work

        return self.loop.run_until_complete(in_time())

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def teardown(self) -> None:
        try:
            # After a failure this would fail, too, and hide it.
            if sys.exc_info()[0] is None:
                self.finish()
                gc.collect(0)  # tasks whose exception nobody has seen tell of it now
                assert not self.faults, self.faults
        finally:
            self.loop.run_until_complete(self.abandon())
            self.loop.close()
            shutil.rmtree(self.folder)
            logging.disable(logging.NOTSET)

    def finish(self) -> None:
        """Everything that is owed is done in the end."""
        raise NotImplementedError

    async def abandon(self) -> None:
        """Leave no thread and no task behind."""
        if (journal := getattr(self, "journal", None)) is not None:
            await die(journal, self.disk, lost=True)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        while tasks:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0)  # type: ignore[assignment]


# The journal by itself


class JournalMachine(Machine):
    """Does what an engine may do with claims: those of a key end in their order, and when one goes back, those behind it follow."""

    journal: SqliteJournal

    @initialize(history=st.sampled_from([0.0, 1e9]))
    def begin(self, history: float) -> None:
        self.history = history
        self.path = self.folder / "journal.db"
        self.open_: dict[int, tuple[str, str | None]] = {}  # by seq: of what was accepted and has not ended
        self.held: dict[int, Claim] = {}
        self.numbers: Counter[str] = Counter()  # of the rows that there must be
        self.run(self.reopened())

    async def reopened(self) -> None:
        self.held.clear()
        self.clock._timers.clear()
        if self.path.exists():
            self.open_ = {row.seq: (row.function, row.key) for row in read_rows(self.path) if row.state < DEAD}
        self.journal = SqliteJournal(self.path, clock=self.clock, dedupe=DEDUPE, history=self.history)
        self.disk.under(self.journal)
        await self.journal.open()
        self.journal.want("f", 5)

    async def flushed(self) -> None:
        with suppress(JournalError):
            for _ in range(3):
                await self.journal.flush()

    @rule(
        function=st.sampled_from("fg"),
        keys=st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=4),
        take=st.booleans(),
        delay=st.sampled_from([0.0, 0.0, 5.0]),
    )
    def accept(self, function: str, keys: list[str | None], take: bool, delay: float) -> None:
        async def accept() -> None:
            entries = [
                Claim(function, Event("test", "t", "s", msgspec.json.encode({"n": self.next_number()}), time=1.0), None, key, delay)
                for key in keys
            ]
            first = self.journal._seq
            with suppress(JournalError):
                await self.journal.accept(entries)
                self.open_ |= {seq: (entry.function, entry.key) for seq, entry in enumerate(entries, first)}
                assert not self.disk.full

        self.run(accept())
        if take:
            self.take()

    @rule(function=st.sampled_from("fg"), count=st.integers(1, 5))
    def want(self, function: str, count: int) -> None:
        async def want() -> None:
            self.journal.want(function, count)
            await self.flushed()

        self.run(want())

    @rule()
    def take(self) -> None:
        async def take() -> list[Claim]:
            taking = asyncio.ensure_future(self.journal.claims())
            await asyncio.sleep(0)
            if not taking.done():
                taking.cancel()
                await asyncio.wait([taking])
                return []
            return taking.result()

        for claim in self.run(take()):
            seq = claim.seq  # type: ignore[attr-defined]
            place = claim.function, claim.key
            assert self.open_[seq] == place
            assert seq not in self.held
            behind = [other for other, its in self.open_.items() if other < seq and its == place and claim.key and other not in self.held]
            assert not behind, f"{seq} was handed out before {behind} of {place}"
            self.held[seq] = claim

    @precondition(lambda self: self.held)
    @rule(
        which=st.integers(0, 9),
        hows=st.lists(st.sampled_from(["done", "retry", "release", "dead"]), min_size=1, max_size=3),
        flush=st.booleans(),
    )
    def settle(self, which: int, hows: list[str], flush: bool) -> None:
        chosen = list(self.held.values())[which % len(self.held)]
        group = [chosen] if chosen.key is None else [c for c in self.held.values() if (c.function, c.key) == (chosen.function, chosen.key)]
        group.sort(key=lambda claim: claim.id)

        async def settle() -> None:
            back = False
            for claim, how in zip(group, hows, strict=False):
                back |= self.end(claim, "release" if back and how == "done" else how)
            for claim in group[len(hows) :] if back else ():
                self.end(claim, "release")
            if flush:
                await self.flushed()

        self.run(settle())

    def end(self, claim: Claim, how: str) -> bool:
        decision: Decision = {
            "done": Done(),
            "retry": RetryAt(self.clock.time() + 10, claim.attempts + 1),
            "release": Release(),
            "dead": Dead("Rejected", "Reject", "", 1),
        }[how]
        self.journal.settle(claim, decision)
        seq = claim.seq  # type: ignore[attr-defined]
        del self.held[seq]
        if how in ("done", "dead"):
            del self.open_[seq]
        return how in ("retry", "release")

    @rule(redrive=st.booleans(), count=st.integers(1, 3))
    def letters(self, redrive: bool, count: int) -> None:
        async def letters() -> None:
            with suppress(JournalError):
                await self.journal.flush()
                found = [row for row in read_rows(self.path) if row.state == DEAD][:count]
                ids = [claim_id(row.seq) for row in found]
                first = self.journal._seq
                assert await (self.journal.redrive(ids) if redrive else self.journal.purge(ids)) == len(ids)
                if redrive:
                    self.open_ |= {seq: (row.function, row.key) for seq, row in enumerate(found, first)}

        self.run(letters())

    @rule(seconds=st.sampled_from([1.5, 11.0]))
    def advance(self, seconds: float) -> None:
        """The disk has room again by then, or most steps would meet a full one."""
        self.disk.full = False
        self.clock.advance(seconds)
        self.run(self.flushed())

    @precondition(lambda self: not self.disk.full)
    @rule(seconds=st.sampled_from([-500.0, 500.0]))
    def set_clock(self, seconds: float) -> None:
        self.clock.set(seconds)
        self.run(self.flushed())

    @rule()
    def fill_the_disk(self) -> None:
        self.disk.full = True

    @rule(lost=st.booleans())
    def die(self, lost: bool) -> None:
        async def again() -> None:
            await die(self.journal, self.disk, lost=lost)
            await self.reopened()

        self.run(again())

    @invariant()
    def rows_are_in_order(self) -> None:
        if hasattr(self, "journal") and not self.disk.full:
            self.run(self.flushed())
            rows = read_rows(self.path, self.journal)
            assert {row.seq for row in rows if row.state < DEAD} == set(self.open_)
            assert {row.seq for row in rows if row.state == RUNNING} >= set(self.held)
            check_keys(rows)

    def finish(self) -> None:
        if not hasattr(self, "journal"):
            return
        self.disk.full = False
        for function in "fg":
            self.run(self.flushed())
            self.journal.want(function, 10_000)
        for _ in range(1000):
            self.take()
            if not self.open_:
                break
            for claim in sorted(self.held.values(), key=lambda claim: claim.id):
                self.end(claim, "done")
            self.advance(1000)
        assert not self.open_
        self.run(self.journal.close())
        assert not [row for row in read_rows(self.path) if row.state < DEAD]


# Journal and engine


class MailTrigger(LocalTrigger):
    source = "mail"


class MailSource(Source[None]):
    name = "mail"

    @staticmethod
    def queue(subject: str) -> Queue:
        return Queue(receives=3, hide=30.0, keep=1e6)

    @staticmethod
    def terms(event: Event) -> Terms:
        """What waits for hands is in groups, and every fifth delayed."""
        hand = event.subject == "hand"
        return Terms(event.json()["key"] if hand else None, 7.0 if hand and event.json()["n"] % 5 == 0 else 0)


MAIL = Plugin(name="mail", source="test_model_based:MailSource", always=True, triggers={"mail": MailTrigger})
# What handlers are owed under each subject. Queues "box" and "tray" have functions, "hand" has none.
SUBJECTS = {
    "plain": [("local", "plain")],
    "solo": [("local", "solo")],
    "both": [("local", "both")],
    "ordered": [("local", f"ordered/{key}") for key in "abc"],
    "bulk": [("local", "bulk")],
    "lots": [("local", f"lots/{key}") for key in "abc"],
    "halves": [("local", f"{place}/{key}") for key in "ab" for place in ("halves", "halves2")],
    "box": [("mail", "box")],
    "tray": [("mail", "tray")],
    "hand": [("mail", "hand")],
}
RETRIES = {"plain": 2, "solo": 1, "ordered": 2, "bulk": 2, "lots": 2, "halves": 2, "mail:box": 2, "mail:tray": 2, "mail:hand": 2}
BATCHES = {"bulk", "lots", "halves"}
HOW = st.sampled_from(["ok", "wait", "raise", "retry", "reject"])


class Attempt:
    """A handler at work. stubborn: it goes on when it is cancelled."""

    def __init__(self, function: str, payloads: Sequence[dict[str, Any]]) -> None:
        self.function = function
        self.numbers = [payload["n"] for payload in payloads]
        self.keys = {payload["key"] for payload in payloads}
        self.gate: asyncio.Future[str] | None = None
        self.stubborn = False
        self.cancelled = False

    @property
    def waits(self) -> bool:
        return self.gate is not None and not self.gate.done()

    def go(self, how: str) -> None:
        if self.gate is not None and not self.gate.done():
            self.gate.set_result(how)

    async def wait(self) -> str:
        while True:
            self.gate = asyncio.get_running_loop().create_future()
            try:
                return await self.gate
            except asyncio.CancelledError:
                self.cancelled = True
                if not self.stubborn:
                    raise


class RouterMachine(Machine):
    app: App

    @initialize(history=st.sampled_from([0, 10**9]))
    def begin(self, history: int) -> None:
        self.history = history
        self.path = self.folder / ".eventrouter" / "journal.db"
        self.attempts: list[Attempt] = []
        self.scripts: dict[int, list[str]] = {}
        self.tries: Counter[Owed] = Counter()
        self.accepted: set[Owed] = set()
        self.open_: dict[Owed, tuple[int, str | None]] = {}  # accepted and not ended: seq and key
        self.begun: set[Owed] = set()
        self.last: dict[Owed, str] = {}  # how its last attempt ended
        self.handled: set[Owed] = set()
        self.gone: set[Owed] = set()  # purged, or removed by hand
        self.letters_: dict[int, Owed] = {}
        self.received: list[tuple[str, int, Owed]] = []
        self.ids: dict[tuple[str, str], float] = {}  # (function, event id): when it was accepted
        self.at_heard: list[Callable[[], object]] = []
        self.ticks = 0
        self.draining = False
        self.run(self.reopened())

    # Handlers

    def handlers(self) -> list[Callable[..., Any]]:
        @on(local("plain"), local("both"), retries=2, backoff=fixed(20))
        async def plain(payload: Any) -> None:
            await self.act("plain", payload)

        @on(local("solo"), local("both"), retries=1, backoff=fixed(0), concurrency=1, max_age=60)
        async def solo(payload: Any) -> None:
            await self.act("solo", payload)

        @on(local("ordered/{key}"), retries=2, backoff=fixed(20), order_by="key")
        async def ordered(payload: Any) -> None:
            await self.act("ordered", payload)

        @on(local("bulk"), retries=2, backoff=fixed(20), batch=Batch(5))
        async def bulk(payload: list[Any]) -> None:
            await self.act_on_all("bulk", payload)

        @on(local("lots/{key}"), retries=2, backoff=fixed(20), batch=Batch(5), order_by="key")
        async def lots(payload: list[Any]) -> None:
            await self.act_on_all("lots", payload)

        @on(local("halves/{key}"), local("halves2/{key}"), retries=2, backoff=fixed(0), batch=Batch(5, 10, True), order_by="key")
        async def halves(payload: list[Any]) -> None:
            await self.act_on_all("halves", payload)

        @on(MailTrigger("box"), order_by="$.key")
        async def box(payload: Any) -> None:
            await self.act("mail:box", payload)

        @on(MailTrigger("tray"))
        async def tray(payload: Any) -> None:
            await self.act("mail:tray", payload)

        return [plain, solo, ordered, bulk, lots, halves, box, tray]

    def next_how(self, function: str, number: int) -> str:
        owed = function, number
        script = self.scripts[number]
        self.tries[owed] += 1
        return "ok" if self.draining else script[self.tries[owed] - 1] if self.tries[owed] <= len(script) else "wait"

    @contextmanager
    def attempt(self, function: str, payloads: Sequence[dict[str, Any]]) -> Iterator[Attempt]:
        attempt = Attempt(function, payloads)
        for other in self.attempts:
            if function == "solo" == other.function:
                self.faults.append("two attempts of solo run at once")
            if other.function == function and set(other.numbers) & set(attempt.numbers) and not other.cancelled:
                self.faults.append(f"{attempt.numbers} of {function} run twice at once")
        self.attempts.append(attempt)
        for number in attempt.numbers:
            self.last[function, number] = "failed"
        try:
            yield attempt
        finally:
            self.ticks += 1
            self.attempts.remove(attempt)

    async def act(self, function: str, payload: dict[str, Any]) -> None:
        with self.attempt(function, [payload]) as attempt:
            how = self.next_how(function, payload["n"])
            if how == "wait":
                how = await attempt.wait()
            if how == "retry":
                raise Retry(after=45)
            if how == "reject":
                raise Reject("no")
            if how != "ok":
                raise ValueError(how)
            self.succeeded(attempt, function, payload["n"])

    async def act_on_all(self, function: str, payloads: list[dict[str, Any]]) -> None:
        with self.attempt(function, payloads) as attempt:
            if len(payloads) > 5:
                self.faults.append(f"a batch of {len(payloads)}")
            hows = [self.next_how(function, payload["n"]) for payload in payloads]
            if "wait" in hows:
                gate = await attempt.wait()
                if gate == "reject":
                    raise Reject("all of them")
                hows = [gate if how == "wait" else how for how in hows]
            failed = [place for place, how in enumerate(hows) if how != "ok"]
            if len(failed) == len(hows):
                raise ValueError("all of them")
            for place, payload in enumerate(payloads):
                # What is behind a failed one of its key goes back with it, unless that is dead; nobody here knows of other halves.
                behind = payload["key"] is not None and any(payloads[other]["key"] == payload["key"] for other in failed if other < place)
                if place not in failed:
                    self.succeeded(attempt, function, payload["n"], "either" if behind or function == "halves" else "ok")
            if failed:
                raise PartialFailure(failed)

    def succeeded(self, attempt: Attempt, function: str, number: int, how: str = "ok") -> None:
        self.handled.add((function, number))
        if not attempt.cancelled:
            self.last[function, number] = how

    # What the engine and the journal tell each other

    def listen(self, journal: SqliteJournal) -> None:  # noqa: C901 - five ears
        accept, settle, started, heard = journal.accept, journal.settle, journal.started, journal._heard
        finish, make_marker = journal.finish, journal.marker

        def hear(commit: Commit) -> None:
            if commit.error is None and (commit.claims or commit.settled or commit.accepts or commit.timers):
                self.ticks += 1
            if commit.accepts:
                todo, self.at_heard = self.at_heard, []
                for callback in todo:
                    callback()
            heard(commit)

        def accepting(entries: Sequence[Claim], told: Fresh = list) -> asyncio.Future[Any]:
            first = journal._seq

            def hear(fresh: list[bool]) -> Any:
                self.receipt(fresh, entries, first)
                return told(fresh)

            return accept(entries, hear)

        def settling(
            claim: Any, decision: Decision, entries: Sequence[Claim] = (), notes: Sequence[Any] = (), ledger: Ledger | None = None
        ) -> None:
            if claim.held and journal._put is not _closed:
                self.settled(claim, decision)
            settle(claim, decision, entries, notes, ledger)

        def finishing(claims: Sequence[Claim], ledger: Ledger | None = None) -> None:
            for claim in claims:
                if claim.held and journal._put is not _closed:
                    self.settled(claim, Done())
            finish(claims, ledger)

        def marker() -> Callable[[Claim | None], None]:
            mark = make_marker()

            def starting(claim: Claim | None) -> None:
                if claim is not None:
                    self.starts(claim)
                mark(claim)

            return starting

        def starting(claim: Claim) -> None:
            self.starts(claim)
            started(claim)

        journal.accept, journal.settle, journal.started, journal._heard = accepting, settling, starting, hear  # type: ignore[method-assign]
        journal.finish, journal.marker = finishing, marker  # type: ignore[method-assign]

    def receipt(self, fresh: list[bool], entries: Sequence[Claim], first: int) -> None:
        self.ticks += 1
        for seq, (entry, new) in enumerate(zip(entries, fresh, strict=True), first):
            if new:
                owed = entry.function, entry.event.json()["n"]
                self.accepted.add(owed)
                self.open_[owed] = seq, entry.key

    def starts(self, claim: Any) -> None:
        self.ticks += 1
        owed = claim.function, claim.event.json()["n"]
        if owed not in self.open_ or owed in self.begun:
            self.faults.append(f"{owed} starts though it has ended or runs")
            return
        if claim.key is not None:
            for other, (seq, key) in self.open_.items():
                together = claim.function in BATCHES and other in self.begun
                if other[0] == claim.function and key == claim.key and seq < claim.seq and not together:
                    self.faults.append(f"{owed} starts before {other} of the same key {key!r} has ended")
            for attempt in self.attempts:
                if attempt.function == claim.function and claim.key in attempt.keys:
                    self.faults.append(f"{owed} starts while {attempt.numbers} of the same key {claim.key!r} still run")
        self.begun.add(owed)

    def settled(self, claim: Any, decision: Decision) -> None:
        self.ticks += 1
        owed = claim.function, claim.event.json()["n"]
        retries, last = RETRIES[claim.function], self.last.get(owed)
        begun = owed in self.begun
        self.begun.discard(owed)
        if isinstance(decision, Done):
            if not begun or last not in ("ok", "either"):
                self.faults.append(f"{owed} is done though it was not handled")
        elif begun and last == "ok":
            self.faults.append(f"{owed} was handled and is {decision}")
        if isinstance(decision, Done | Dead) and self.open_.pop(owed, None) is None:
            self.faults.append(f"{owed} ends twice: {decision}")
        if (isinstance(decision, RetryAt) and decision.attempts > retries) or (
            isinstance(decision, Dead) and decision.attempts > retries + 1
        ):
            self.faults.append(f"{owed} was charged too much: {decision}")

    # Life

    async def reopened(self) -> None:
        self.attempts.clear()
        self.begun.clear()
        self.clock._timers.clear()
        if self.path.exists():
            self.open_ = {(row.function, row.number): (row.seq, row.key) for row in read_rows(self.path) if row.state < DEAD}
        toml = f"[app]\ndrain = 5\n[journal]\ndedupe = {DEDUPE}\nhistory = {self.history}\nmin_free = 0\n"
        (self.folder / ".eventrouter").mkdir(exist_ok=True)
        with patch("eventrouter.app.lock", nullcontext):
            self.app = make_app(self.folder, *self.handlers(), clock=self.clock, toml=toml, plugins=Plugins([LOCAL, MAIL]))
            self.journal: SqliteJournal = self.app.journal  # type: ignore[assignment]
            self.disk.under(self.journal)
            self.listen(self.journal)
            self.app.engine.watch = lambda: None  # type: ignore[method-assign]  # it looks at the wall clock
            await self.app.start()
        await self.calm()

    async def calm(self) -> None:
        """Return when nothing more happens by itself."""
        before = -1
        quiet = 0
        while quiet < 2:
            with suppress(JournalError):
                await self.journal.flush()
            for _ in range(6):
                await asyncio.sleep(0)
            quiet = quiet + 1 if self.ticks == before else 0
            before = self.ticks

    async def end_all(self) -> None:
        """What a process's end does to its tasks."""
        engine = self.app.engine
        engine._stopping = True
        for attempt in self.attempts:
            attempt.stubborn = False
        assert self.app.supervisor is not None
        tasks: set[asyncio.Task[None]] = {*engine.workers.tasks, *engine._left, *self.app.supervisor._tasks}
        tasks |= {engine._pump_task} if engine._pump_task is not None else set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)
        assert not self.attempts
        self.at_heard.clear()

    # Rules

    @rule(
        what=st.sampled_from(list(SUBJECTS)),
        events=st.lists(st.tuples(st.integers(0, 3), st.lists(HOW, max_size=3)), min_size=1, max_size=7),
        go=st.none() | st.tuples(st.integers(0, 9), HOW),
    )
    def accept(self, what: str, events: list[tuple[int, list[str]]], go: tuple[int, str] | None) -> None:
        """go: the handler that ends in the very turn of the loop that hears of the commit."""
        made = [self.event(what, place, script) for place, script in events]
        waiting = [attempt for attempt in self.attempts if attempt.waits]
        if go is not None and waiting:
            self.at_heard = [lambda: waiting[go[0] % len(waiting)].go(go[1])]
        self.run(self.deliver(made))
        self.at_heard.clear()

    def event(self, what: str, place: int, script: list[str], id: str | None = None) -> Event:
        source, subject = SUBJECTS[what][place % len(SUBJECTS[what])]
        number = self.next_number()
        self.scripts[number] = script
        key = subject.rpartition("/")[2] if "/" in subject else "xy"[place % 2] if what in ("box", "hand") else None
        return Event(source, "test", subject, msgspec.json.encode({"n": number, "key": key}), id=id or new_id())

    async def deliver(self, events: list[Event]) -> int | None:
        try:
            new = await self.app.sources[events[0].source].router.deliver(events)
            assert not self.disk.full
        except JournalError:
            assert self.journal.fault
            new = None
        await self.calm()
        return new

    @rule(what=st.sampled_from(["plain", "ordered", "bulk"]), id=st.sampled_from("pq"))
    def accept_a_repeat(self, what: str, id: str) -> None:
        new = self.run(self.deliver([self.event(what, 0, [], id)]))
        first = self.ids.get((what, id))
        now = self.clock.monotonic()
        if new is None:
            return
        if first is None or now > first + DEDUPE + 1:
            assert new == 1
        elif now < first + DEDUPE - 1:
            assert new == 0
        if new:
            self.ids[what, id] = now

    @rule(which=st.integers(0, 9), how=HOW, more=st.booleans())
    def go(self, which: int, how: str, more: bool) -> None:
        """Handlers end. more: all of that function at once."""
        waiting = [attempt for attempt in self.attempts if attempt.waits]
        if not waiting:  # a precondition would make what is drawn depend on what the threads do
            return
        chosen = waiting[which % len(waiting)]

        async def go() -> None:
            for attempt in waiting:
                if attempt is chosen or (more and attempt.function == chosen.function):
                    attempt.go(how)
            await self.calm()

        self.run(go())

    @rule(which=st.integers(0, 9))
    def grow_stubborn(self, which: int) -> None:
        waiting = [attempt for attempt in self.attempts if attempt.waits]
        if waiting:
            waiting[which % len(waiting)].stubborn = True

    @rule(seconds=st.sampled_from([0.5, 1.5, 3.5, 10.0, 21.0, 46.0, 1001.0, 3600.0]), full=st.booleans())
    def advance(self, seconds: float, full: bool = False) -> None:
        """full: the disk, if it is, stays so meanwhile."""

        async def advance() -> None:
            if not full:
                self.disk.full = False
                self.clock.advance(1.5)
                await self.calm()
            self.clock.advance(seconds)
            await self.calm()

        self.run(advance())

    @precondition(lambda self: not self.disk.full)
    @rule(seconds=st.sampled_from([-100_000.0, -600.0, -5.0, 5.0, 600.0, 100_000.0]))
    def set_clock(self, seconds: float) -> None:
        self.clock.set(seconds)
        self.run(self.calm())

    @rule()
    def fill_the_disk(self) -> None:
        self.disk.full = True

    @rule(lost=st.booleans(), meanwhile=st.none() | st.integers(0, 4))
    def die(self, lost: bool, meanwhile: int | None) -> None:
        """meanwhile: so many turns of the loop after an event came in and a handler ended."""

        async def again() -> None:
            if meanwhile is not None:
                receipt = self.app.sources["local"].router.deliver([self.event("ordered", 0, [])])
                receipt.add_done_callback(lambda receipt: receipt.exception())
                for attempt in [attempt for attempt in self.attempts if attempt.waits][:1]:
                    attempt.go("ok")
                for _ in range(meanwhile):
                    await asyncio.sleep(0)
            self.app.engine._stopping = True  # the dead begin nothing
            await die(self.journal, self.disk, lost=lost)
            await self.end_all()
            await self.reopened()

        self.run(again())

    @rule(meanwhile=st.none() | HOW)
    def stop(self, meanwhile: str | None) -> None:
        """meanwhile: how a handler ends while the router drains."""

        async def again() -> None:
            stopping = asyncio.ensure_future(self.app.stop())
            for _ in range(20):
                await asyncio.sleep(0)
            for attempt in [attempt for attempt in self.attempts if attempt.waits][:1] if meanwhile else ():
                attempt.go(str(meanwhile))
            for _ in range(20):
                await asyncio.sleep(0)
            self.clock.advance(6)
            try:
                await stopping
            except JournalError:
                assert self.disk.full
            self.disk.full = False
            await self.end_all()
            await self.reopened()

        self.run(again())

    @rule(which=st.integers(0, 9), count=st.integers(1, 3), redrive=st.booleans())
    def letters(self, which: int, count: int, redrive: bool) -> None:
        found = [row for row in read_rows(self.path) if row.state == DEAD]
        found = found[which % len(found) :][:count] if found else []

        async def change() -> None:
            first = self.journal._seq
            anew = {(row.function, row.number): (seq, row.key) for seq, row in enumerate(found, first)}
            self.open_ |= anew if redrive else {}
            try:
                ids = [claim_id(row.seq) for row in found]
                assert await (self.app.engine.by_hand.redrive(ids) if redrive else self.journal.purge(ids)) == len(ids)
            except JournalError:
                for owed in anew if redrive else ():
                    del self.open_[owed]
                return
            for row in found:
                self.letters_.pop(row.seq, None)
                if not redrive:
                    self.gone.add((row.function, row.number))
            await self.calm()

        self.run(change())

    @rule(subject=st.sampled_from(["hand", "box", "tray"]), count=st.integers(1, 3))
    def receive(self, subject: str, count: int) -> None:
        async def receive() -> None:
            batch = set()
            with suppress(JournalError):
                for message in await self.app.sources["mail"].router.receive(subject, count, 40.0):
                    owed = f"mail:{subject}", message.event.json()["n"]
                    seq, key = self.open_[owed]
                    assert message.receives <= 3
                    before = {n for n, (s, k) in self.open_.items() if n[0] == owed[0] and k == key and s < seq and key is not None}
                    before -= batch
                    batch.add(owed)
                    assert not before, f"{owed} is received before {before}"
                    self.received.append((message.id, message.receives, owed))
            await self.calm()

        self.run(receive())

    @rule(which=st.integers(0, 9), hide=st.sampled_from([None, 0.0, 100.0]))
    def remove_or_hide(self, which: int, hide: float | None) -> None:
        if not self.received:
            return
        id, receives, owed = self.received[which % len(self.received)]
        row = next((row for row in read_rows(self.path) if claim_id(row.seq) == id), None)
        # What was received with another of its key, behind it, is parked.
        known = row is not None and row.state in (WAITING, PARKED) and row.attempts == receives

        async def change() -> None:
            router, queue = self.app.sources["mail"].router, owed[0].partition(":")[2]
            with suppress(JournalError):
                changed = await (router.remove(queue, id, receives) if hide is None else router.hide(queue, id, receives, hide))
                assert changed == known
                if changed and hide is None:
                    self.gone.add(owed)
                    del self.open_[owed]
            await self.calm()

        self.run(change())

    async def abandon(self) -> None:
        for attempt in getattr(self, "attempts", ()):
            attempt.stubborn = False
        if hasattr(self, "app"):
            self.app.engine._stopping = True
        await super().abandon()

    # What holds after each

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.faults, self.faults

    @invariant()
    def all_is_where_it_should_be(self) -> None:
        if not hasattr(self, "app") or self.disk.full:
            return
        rows = read_rows(self.path, self.journal)
        live = {(row.function, row.number): row for row in rows if row.state < DEAD}
        assert {owed: row.seq for owed, row in live.items()} == {owed: seq for owed, (seq, _) in self.open_.items()}
        places = Counter((row.function, row.number) for row in rows)
        assert set(places) <= self.accepted, "what was refused is in the file"
        assert set(places.values()) <= {1}
        assert self.accepted - set(places) <= self.handled | self.gone, "something is lost"
        letters = {row.seq: (row.function, row.number) for row in rows if row.state == DEAD}
        assert self.letters_.items() <= letters.items(), "a dead letter is gone"
        self.letters_ = letters
        for row in rows:
            assert row.attempts <= RETRIES[row.function] + (row.state >= DEAD or row.function.startswith("mail:"))
        check_keys(rows)
        self.check_that_all_runs(live)
        dead = self.run(self.journal.dead(LetterQuery(), limit=10_000))
        assert [letter.id for letter in dead] == [claim_id(seq) for seq in sorted(letters)]
        waiting = Counter(row.function for row in live.values() if row.state != RUNNING)
        depth = self.run(self.journal.depth())
        assert {name: counts["waiting"] for name, counts in depth.items() if counts["waiting"]} == waiting

    def check_that_all_runs(self, live: dict[Owed, Row]) -> None:
        """What is due is with the engine, and what the engine has is run, unless there is a reason."""
        at_work = {(attempt.function, number) for attempt in self.attempts for number in attempt.numbers}
        kept = {(attempt.function, key) for attempt in self.attempts for key in attempt.keys if attempt.cancelled}
        for owed, row in live.items():
            if row.function == "mail:hand":
                continue
            assert row.state != WAITING or row.due > self.clock.time() - 0.001, f"{owed} is due and waits: {row}"
            first = row.key is None or all(row.seq <= r.seq for r in live.values() if (r.function, r.key) == (row.function, row.key))
            if row.state == RUNNING and first and row.function not in ("solo", "halves") and (row.function, row.key) not in kept:
                assert owed in at_work, f"{owed} was handed out and is not run: {row}"

    def finish(self) -> None:
        if hasattr(self, "app"):
            self.draining = True
            self.disk.full = False
            for _ in range(50):
                for attempt in list(self.attempts):
                    attempt.go("ok")
                self.advance(50.0)
                if all(owed[0] == "mail:hand" for owed in self.open_):
                    break
            self.nothing_went_wrong()
            self.all_is_where_it_should_be()
            assert all(owed[0] == "mail:hand" for owed in self.open_), f"never done: {self.open_}"
            lost = self.accepted - self.handled - self.gone - set(self.letters_.values()) - set(self.open_)
            assert not lost
            self.run(self.app.stop())


@pytest.fixture(autouse=True)
def long_backlogs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three events are one."""
    monkeypatch.setattr(writer, "_BEHIND", 2)


TestJournal = pytest.mark.filterwarnings("default")(JournalMachine.TestCase)
TestRouter = pytest.mark.filterwarnings("default")(RouterMachine.TestCase)
TestJournal.settings = TestRouter.settings = SETTINGS
