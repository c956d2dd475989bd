"""What every journal must do. A test module of an implementation subclasses `JournalContract`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from eventrouter import Event, new_id
from eventrouter.clock import ManualClock
from eventrouter.errors import JournalError
from eventrouter.journal.protocol import Claim, Journal, Letter, LetterQuery, Note, QueueDepth, Received
from eventrouter.model import Dead, Done, Release, RetryAt

DONE = Done()
DEAD = Dead("RetriesExhausted", "ValueError", "no such device", 3)


def event(n: int = 0, id: str | None = None, source: str = "test") -> Event:
    return Event(source, "test.event", f"subject/{n}", b"%d" % n, id=id or new_id(), time=1.0, attributes={"n": n})


def entries(function: str, *numbers: int) -> list[Claim]:
    return [Claim(function, event(n), hint=n) for n in numbers]


def keyed(key: str, *numbers: int, of: str = "f") -> list[Claim]:
    return [Claim(of, event(n), key=key) for n in numbers]


def numbers(claims: Sequence[Claim | Letter]) -> list[int]:
    return [int(claim.event.data) for claim in claims]


class JournalContract:
    """make(clock, dedupe=, history=): a journal, not open; one made later for the same test finds what the former wrote.

    lasting: whether that is so.
    """

    lasting = True

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def make(self, clock: ManualClock) -> Callable[..., Journal]:
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def journal(self, make: Callable[..., Journal]) -> AsyncIterator[Journal]:
        journal = make()
        await journal.open()
        yield journal
        await journal.close()

    async def claims(self, journal: Journal, count: int) -> list[Claim]:
        """So many, as they come."""
        found: list[Claim] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                found += await journal.claims()
        assert len(found) == count
        return found

    async def nothing_comes(self, journal: Journal) -> None:
        waiting = asyncio.ensure_future(journal.claims())
        for _ in range(3):
            await journal.flush()
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])

    # Accepting and handing out

    async def test_what_is_accepted_is_handed_out_against_credit(self, journal: Journal, clock: ManualClock) -> None:
        assert await journal.accept(entries("f", 1, 2, 3)) == [True] * 3
        await self.nothing_comes(journal)
        journal.want("f", 2)
        first = await self.claims(journal, 2)
        assert numbers(first) == [1, 2]
        assert (first[0].function, first[0].attempts, first[0].born) == ("f", 0, clock.monotonic())
        assert first[0].event.attributes == {"n": 1}
        await self.nothing_comes(journal)
        journal.want("f", 1)
        assert numbers(await self.claims(journal, 1)) == [3]

    async def test_ids_are_unlike_and_of_uuid_shape(self, journal: Journal) -> None:
        journal.want("f", 10)
        await journal.accept(entries("f", *range(10)))
        ids = {claim.id for claim in await self.claims(journal, 10)}
        assert len(ids) == 10
        assert {tuple(map(len, id.split("-"))) for id in ids} == {(8, 4, 4, 4, 12)}

    async def test_hints_come_back_while_they_are_in_memory(self, journal: Journal) -> None:
        journal.want("f", 1)
        await journal.flush()
        await journal.accept(entries("f", 7))
        (claim,) = await self.claims(journal, 1)
        assert claim.hint in (7, None)

    async def test_a_backlog_comes_in_order_and_whole(self, journal: Journal) -> None:
        await journal.accept(entries("f", *range(3000)))
        journal.want("f", 100)
        got: list[int] = []
        more = 3000
        while len(got) < 3000:
            if more < 3500:  # new ones don't overtake
                await journal.accept(entries("f", *range(more, more + 100)))
                more += 100
            for claim in await journal.claims():
                got.append(int(claim.event.data))
                journal.settle(claim, DONE)
                journal.want("f", 1)
        assert got == list(range(len(got)))

    async def test_one_functions_backlog_does_not_starve_another(self, journal: Journal) -> None:
        await journal.accept(entries("busy", *range(2000)))
        journal.want("busy", 10)
        await self.claims(journal, 10)
        journal.want("quick", 5)
        await journal.accept(entries("quick", 1))
        assert [claim.function for claim in await self.claims(journal, 1)] == ["quick"]

    # Repeats

    async def test_a_repeat_of_source_id_and_function_is_told(self, journal: Journal) -> None:
        assert await journal.accept([Claim("f", event(1, "a")), Claim("g", event(1, "a")), Claim("f", event(2, "a"))]) == [
            True,
            True,
            False,
        ]
        assert await journal.accept([Claim("f", event(3, "a", "other")), Claim("f", event(4, "a")), Claim("f", event(5, "b"))]) == [
            True, False, True,
        ]  # fmt: skip
        journal.want("f", 10)
        assert numbers(await self.claims(journal, 3)) == [1, 3, 5]

    async def test_events_without_an_id_are_never_repeats(self, journal: Journal) -> None:
        same = event(1)
        assert await journal.accept([Claim("f", same), Claim("f", same)]) == [True, True]

    async def test_a_repeat_is_known_as_long_as_it_was_asked_for(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        journal = make(dedupe=60)
        await journal.open()
        assert await journal.accept([Claim("f", event(1, "a"))]) == [True]
        journal.want("f", 1)
        for claim in await self.claims(journal, 1):
            journal.settle(claim, DONE)
        clock.advance(59)
        assert await journal.accept([Claim("f", event(1, "a"))]) == [False]
        clock.advance(2)
        assert await journal.accept([Claim("f", event(1, "a"))]) == [True]
        await journal.close()

    async def test_without_dedupe_nothing_is_a_repeat(self, make: Callable[..., Journal]) -> None:
        journal = make(dedupe=0)
        await journal.open()
        assert await journal.accept([Claim("f", event(1, "a")), Claim("f", event(2, "a"))]) == [True, True]
        assert await journal.accept([Claim("f", event(3, "a"))]) == [True]
        await journal.close()

    # Settling

    async def test_done_is_gone(self, journal: Journal) -> None:
        journal.want("f", 1)
        await journal.accept(entries("f", 1))
        (claim,) = await self.claims(journal, 1)
        journal.settle(claim, DONE)
        await journal.flush()
        assert await journal.depth() == {}
        assert await journal.find(claim.id) == []

    async def test_a_retry_comes_when_it_is_due(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 5)
        await journal.accept(entries("f", 1))
        (claim,) = await self.claims(journal, 1)
        journal.settle(claim, RetryAt(clock.time() + 30, 1))
        clock.advance(29)
        await self.nothing_comes(journal)
        clock.advance(1.5)
        (again,) = await self.claims(journal, 1)
        assert (again.id, again.attempts, again.born) == (claim.id, 1, claim.born)

    async def test_a_later_retry_does_not_hide_an_earlier_one(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 5)
        await journal.accept(entries("f", 1, 2))
        one, two = await self.claims(journal, 2)
        journal.settle(one, RetryAt(clock.time() + 100, 1))
        journal.settle(two, RetryAt(clock.time() + 10, 1))
        await journal.flush()
        clock.advance(11)
        assert numbers(await self.claims(journal, 1)) == [2]
        clock.advance(90)
        assert numbers(await self.claims(journal, 1)) == [1]

    async def test_what_is_released_comes_again_uncharged(self, journal: Journal) -> None:
        journal.want("f", 5)
        await journal.accept(entries("f", 1))
        (claim,) = await self.claims(journal, 1)
        journal.settle(claim, Release())
        (again,) = await self.claims(journal, 1)
        assert (again.id, again.attempts) == (claim.id, 0)

    async def test_repeated_late_and_foreign_settlements_are_harmless(self, journal: Journal) -> None:
        journal.want("f", 5)
        await journal.accept(entries("f", 1, 2))
        one, two = await self.claims(journal, 2)
        journal.settle(one, DONE)
        journal.settle(one, DEAD)
        journal.settle(Claim("00000000-0000-4000-8000-000000000000", "f", event(), 0, 0.0), DONE)
        journal.settle(two, Release())
        (again,) = await self.claims(journal, 1)
        journal.settle(two, DEAD)  # that claim is no more
        await journal.flush()
        assert await journal.dead(LetterQuery()) == []
        assert await journal.depth() == {"f": {"waiting": 0, "running": 1, "dead": 0}}
        journal.settle(again, DONE)

    # Order

    async def held(self, journal: Journal) -> list[Claim]:
        """What comes without being waited for."""
        await journal.flush()
        taking = asyncio.ensure_future(journal.claims())
        await asyncio.sleep(0)
        if taking.done():
            return taking.result()
        taking.cancel()
        await asyncio.wait([taking])
        return []

    async def test_what_follows_one_that_goes_back_waits_behind_it(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 20)
        await journal.flush()
        await journal.accept([*keyed("a", 1, 2, 3), *keyed("b", 4), *entries("f", 5)])
        claims = await self.claims(journal, 5)
        assert numbers(claims) == [1, 2, 3, 4, 5]
        assert [claim.key for claim in claims] == ["a", "a", "a", "b", None]
        one, two, three, *_ = claims
        journal.settle(one, RetryAt(clock.time() + 30, 1))
        await journal.accept([*keyed("a", 6), *keyed("b", 7), *keyed("c", 8)])
        assert numbers(await self.held(journal)) == [7, 8]
        journal.settle(two, Release())
        journal.settle(three, Release())
        assert await self.held(journal) == []
        clock.advance(31)
        (again,) = await self.claims(journal, 1)
        assert (numbers([again]), again.attempts) == ([1], 1)
        await journal.accept(keyed("a", 9))
        assert await self.held(journal) == [], "a head that was tried before comes alone"
        journal.settle(again, DONE)
        assert numbers(await self.claims(journal, 4)) == [2, 3, 6, 9]

    async def test_what_nobody_has_taken_yet_goes_back_with_the_one_before_it(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 4)
        await journal.flush()
        await journal.accept(keyed("a", 1))
        (one,) = await self.claims(journal, 1)
        await journal.accept([*keyed("a", 2), *keyed("b", 3)])  # handed out, and nobody asks for claims
        journal.settle(one, RetryAt(clock.time() + 30, 1))
        assert numbers(await self.held(journal)) == [3]
        clock.advance(31)
        (one,) = await self.claims(journal, 1)
        journal.settle(one, DONE)
        assert numbers(await self.claims(journal, 1)) == [2]

    async def test_what_nobody_has_taken_yet_is_counted_once_when_some_of_it_goes_back(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 20)
        await journal.flush()
        await journal.accept(keyed("a", 1))
        (one,) = await self.claims(journal, 1)
        await journal.accept([*keyed("a", 2), *entries("f", 3)])  # handed out, and not taken
        journal.settle(one, RetryAt(clock.time() + 30, 1))
        await journal.flush()
        assert await journal.depth() == {"f": {"waiting": 2, "running": 1, "dead": 0}}
        (three,) = await self.claims(journal, 1)
        assert numbers([three]) == [3]
        journal.settle(three, DONE)
        await journal.flush()
        assert await journal.depth() == {"f": {"waiting": 2, "running": 0, "dead": 0}}

    async def test_what_is_removed_by_hand_frees_its_key(self, journal: Journal) -> None:
        await journal.accept(keyed("a", 1, 2, 3))
        for n in (1, 2):
            ((message,), _) = await journal.receive("f", 1, 30, 3)
            assert int(message.event.data) == n
            assert await journal.remove("f", message.id, 1)
        journal.want("f", 1)
        assert numbers(await self.claims(journal, 1)) == [3]

    async def test_a_dead_letter_frees_its_key_and_a_redriven_one_joins_the_tail(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 20)
        await journal.accept(keyed("a", 1, 2))
        one, two = await self.claims(journal, 2)
        journal.settle(two, Release())
        journal.settle(one, DEAD)
        (two,) = await self.claims(journal, 1)
        assert numbers([two]) == [2]
        journal.settle(two, RetryAt(clock.time() + 30, 1))
        (letter,) = await journal.dead(LetterQuery())
        assert await journal.redrive([letter.id]) == 1
        assert await self.held(journal) == []
        clock.advance(31)
        (two,) = await self.claims(journal, 1)
        journal.settle(two, DONE)
        assert numbers(await self.claims(journal, 1)) == [1]

    async def test_the_order_of_a_key_outlives_the_process(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        if not self.lasting:
            return
        journal = make()
        await journal.open()
        journal.want("f", 2)
        await journal.accept(keyed("a", 1, 2, 3, 4))
        one, _ = await self.claims(journal, 2)
        journal.settle(one, DONE)
        await journal.flush()
        await journal.close()
        journal = make()
        await journal.open()
        assert (await journal.depth())["f"]["waiting"] == 3
        journal.want("f", 20)
        assert numbers(await self.claims(journal, 3)) == [2, 3, 4]
        await journal.close()

    @pytest.mark.parametrize("seed", range(4))
    async def test_keys_come_in_order_whatever_happens(self, make: Callable[..., Journal], clock: ManualClock, seed: int) -> None:
        chance = random.Random(seed)
        journal = make()
        await journal.open()
        journal.want("f", 1_000_000)
        accepted = 0
        ended: dict[str, list[int]] = {key: [] for key in "abc"}
        chains: dict[str, list[Claim]] = {key: [] for key in "abc"}
        while sum(map(len, ended.values())) < 400:
            if accepted < 400 and chance.random() < 0.4:
                count = min(400 - accepted, chance.randrange(1, 10))
                receipt = journal.accept([e for n in range(accepted, accepted + count) for e in keyed("abc"[n % 3], n)])
                accepted += count
                if chance.random() < 0.5:
                    await receipt
            for claim in await self.held(journal):
                assert claim.key is not None
                chains[claim.key].append(claim)
            for key, chain in chains.items():
                if not chain or chance.random() < 0.3:
                    continue
                head, how = chain.pop(0), chance.random()
                if how < 0.7:
                    journal.settle(head, DONE if how < 0.6 else DEAD)
                    ended[key].append(int(head.event.data))
                else:
                    journal.settle(head, RetryAt(clock.time() + chance.randrange(3), head.attempts + 1) if how < 0.9 else Release())
                    for follower in chain:
                        journal.settle(follower, Release())
                    chain.clear()
            if chance.random() < 0.2:
                clock.advance(1)
            if self.lasting and chance.random() < 0.02:
                await journal.close()
                chains = {key: [] for key in "abc"}
                journal = make()
                await journal.open()
                journal.want("f", 1_000_000)
        assert ended == {key: list(range(place, 400, 3)) for place, key in enumerate("abc")}
        await journal.close()

    # What is written with a settlement

    async def test_copies_and_notes_are_written_with_the_settlement(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 1)
        journal.want("g", 5)
        await journal.accept(entries("f", 1))
        (claim,) = await self.claims(journal, 1)
        journal.settle(claim, DEAD, entries("g", 7, 8), [Note("k", b"v"), Note("short", b"v", ttl=10)])
        assert numbers(await self.claims(journal, 2)) == [7, 8]
        assert numbers(await journal.dead(LetterQuery())) == [1]
        assert (await journal.get("k"), await journal.get("short")) == (b"v", b"v")
        clock.advance(11)
        assert (await journal.get("k"), await journal.get("short")) == (b"v", None)
        assert await journal.put("short", b"w", expect=None, ttl=5)
        journal.settle(claim, DEAD, entries("g", 9))
        assert await self.held(journal) == [], "a repeated settlement writes nothing"

    # Queues

    async def test_a_message_is_seen_by_one_until_it_is_removed(self, journal: Journal, clock: ManualClock) -> None:
        await journal.accept(entries("q:a", 1, 2, 3))
        received, spent = await journal.receive("q:a", 2, 30, 5)
        assert ([int(it.event.data) for it in received], [it.receives for it in received], spent) == ([1, 2], [1, 1], [])
        assert [int(it.event.data) for it in (await journal.receive("q:a", 9, 30, 5))[0]] == [3]
        assert not await journal.remove("q:b", received[0].id, 1), "it is of another queue"
        assert not await journal.hide("q:b", received[0].id, 1, 0)
        assert await journal.remove("q:a", received[0].id, 1)
        assert not await journal.remove("q:a", received[0].id, 1)
        clock.advance(31)
        (again, _), _ = await journal.receive("q:a", 2, 30, 5)
        assert (int(again.event.data), again.receives) == (2, 2)
        assert not await journal.remove("q:a", again.id, 1), "by an older receipt"
        assert await journal.hide("q:a", again.id, 2, 0)
        (again,), _ = await journal.receive("q:a", 2, 30, 5)
        assert again.receives == 3
        assert await journal.depth() == {"q:a": {"waiting": 2, "running": 0, "dead": 0}}

    async def test_a_message_received_too_often_is_a_claim(self, journal: Journal, clock: ManualClock) -> None:
        await journal.accept(entries("q:a", 1))
        for _ in range(2):
            ((message,), _) = await journal.receive("q:a", 1, 5, 2)
            clock.advance(6)
        received, (claim,) = await journal.receive("q:a", 1, 5, 2)
        assert (received, claim.attempts, numbers([claim])) == ([], 2, [1])
        journal.settle(claim, DEAD)
        await journal.flush()
        assert [letter.function for letter in await journal.dead(LetterQuery())] == ["q:a"]
        assert not await journal.remove("q:a", message.id, 2)

    async def test_what_is_hidden_comes_to_a_function_when_it_is_due(self, journal: Journal, clock: ManualClock) -> None:
        await journal.accept(entries("q:a", 1))
        await journal.receive("q:a", 1, 5, 2)
        journal.want("q:a", 1)
        assert await self.held(journal) == []
        clock.advance(6)
        (claim,) = await self.claims(journal, 1)
        assert claim.attempts == 1

    # The clock

    @pytest.mark.parametrize("step", [86_400.0, -86_400.0])
    async def test_setting_the_clock_makes_nothing_older_or_due(self, journal: Journal, clock: ManualClock, step: float) -> None:
        journal.want("f", 1)
        await journal.accept(entries("f", 1, 2))
        (one,) = await self.claims(journal, 1)
        journal.settle(one, RetryAt(clock.time() + 60, 1))
        await journal.flush()
        clock.advance(10)
        clock.set(step)
        journal.want("f", 5)
        (two,) = await self.claims(journal, 1)
        assert (numbers([two]), clock.monotonic() - two.born) == ([2], 10)
        assert await self.held(journal) == []
        clock.advance(49)
        assert await self.held(journal) == []
        clock.advance(2)
        (one,) = await self.claims(journal, 1)
        assert (one.attempts, clock.monotonic() - one.born) == (1, 61)

    async def test_what_came_later_is_later_however_the_clock_trembles(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        journal = make(archive=60)
        await journal.open()
        for n in range(10):
            await journal.accept(entries("f", n))
            clock.advance(0.001)
            clock.set(0.02 if n % 2 else -0.02)
        if self.lasting:
            assert await self.archived(journal) == [*range(10)]
        journal.want("f", 10)
        assert numbers(await self.claims(journal, 10)) == [*range(10)]
        await journal.close()

    # Dead letters

    async def bury(self, journal: Journal, function: str, n: int, decision: Dead = DEAD) -> None:
        journal.want(function, 1)
        await journal.accept(entries(function, n))
        (claim,) = await self.claims(journal, 1)
        journal.settle(claim, decision)
        await journal.flush()

    async def test_dead_letters_are_listed_oldest_first(self, journal: Journal, clock: ManualClock) -> None:
        for n in range(5):
            await self.bury(journal, "f", n)
            clock.advance(1)
        found = await journal.dead(LetterQuery())
        assert numbers(found) == [0, 1, 2, 3, 4]
        letter = found[0]
        assert (letter.function, letter.reason, letter.error_type, letter.error_message, letter.attempts) == (
            "f", "RetriesExhausted", "ValueError", "no such device", 3,
        )  # fmt: skip
        assert letter.died_at == clock.time() - 5
        pages = [await journal.dead(LetterQuery(), limit=2)]
        while pages[-1]:
            pages.append(await journal.dead(LetterQuery(), after=pages[-1][-1].id, limit=2))
        assert [numbers(page) for page in pages] == [[0, 1], [2, 3], [4], []]

    async def test_letters_by_function_error_and_time(self, journal: Journal, clock: ManualClock) -> None:
        await self.bury(journal, "f", 1)
        await self.bury(journal, "g", 2, Dead("Rejected", "Reject", "no", 1))
        clock.advance(100)
        await self.bury(journal, "g", 3)
        assert numbers(await journal.dead(LetterQuery(function="g"))) == [2, 3]
        assert numbers(await journal.dead(LetterQuery(error="ValueError"))) == [1, 3]
        assert numbers(await journal.dead(LetterQuery(error="Rejected"))) == [2]
        assert numbers(await journal.dead(LetterQuery(since=clock.time() - 50))) == [3]
        assert numbers(await journal.dead(LetterQuery(function="g", error="ValueError", since=0.0))) == [3]
        one = (await journal.dead(LetterQuery(function="g")))[0]
        assert numbers(await journal.dead(LetterQuery(id=one.id))) == [2]
        assert await journal.dead(LetterQuery(id=one.id, function="f")) == []
        assert await journal.dead(LetterQuery(id=one.id), after=one.id) == []
        assert await journal.dead(LetterQuery(id="00000000-0000-4000-8000-000000000000")) == []
        assert await journal.dead(LetterQuery(id="what?")) == []

    async def test_redrive_goes_to_the_tail_as_new(self, journal: Journal, clock: ManualClock) -> None:
        await self.bury(journal, "f", 1)
        await journal.accept(entries("f", 2))
        (letter,) = await journal.dead(LetterQuery())
        clock.advance(500)
        assert await journal.redrive([letter.id, "00000000-0000-4000-8000-0000000000ff", "nonsense"]) == 1
        assert await journal.redrive([letter.id]) == 0
        assert await journal.dead(LetterQuery()) == []
        journal.want("f", 5)
        waiting, again = await self.claims(journal, 2)
        assert numbers([waiting, again]) == [2, 1]
        assert (again.attempts, again.born) == (0, clock.monotonic())
        assert (waiting.redriven, again.redriven) == (False, True)
        assert again.id != letter.id
        journal.settle(again, RetryAt(clock.time(), 1))
        journal.want("f", 1)
        (retried,) = await self.claims(journal, 1)
        assert retried.redriven

    async def test_purge(self, journal: Journal) -> None:
        await self.bury(journal, "f", 1)
        await self.bury(journal, "f", 2)
        found = await journal.dead(LetterQuery())
        assert await journal.purge([found[0].id, "nonsense"]) == 1
        assert numbers(await journal.dead(LetterQuery())) == [2]

    # Queues: delays, repeats, orders, waiting

    async def test_a_delayed_entry_comes_when_its_delay_is_over(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 9)
        await journal.accept([Claim("f", event(1), delay=30), Claim("f", event(2))])
        assert numbers(await self.claims(journal, 1)) == [2]
        clock.advance(29)
        await self.nothing_comes(journal)
        clock.advance(2)
        (claim,) = await self.claims(journal, 1)
        assert (numbers([claim]), claim.attempts) == ([1], 0)

    async def test_a_delay_outlives_the_process(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        if not self.lasting:
            return
        journal = make()
        await journal.open()
        await journal.accept([Claim("f", event(1), delay=30)])
        await journal.close()
        clock.advance(20)
        journal = make()
        await journal.open()
        journal.want("f", 9)
        await self.nothing_comes(journal)
        clock.advance(11)
        assert numbers(await self.claims(journal, 1)) == [1]
        await journal.close()

    async def test_a_delayed_head_holds_its_key(self, journal: Journal, clock: ManualClock) -> None:
        journal.want("f", 9)
        await journal.accept(
            [Claim("f", event(1), key="a", delay=30), Claim("f", event(2), key="a"), Claim("f", event(3), key="a", delay=90)]
        )
        await self.nothing_comes(journal)
        clock.advance(31)
        for n in (1, 2):
            while not (found := await journal.claims()):
                pass
            assert numbers(found)[0] == n
            for claim in found:
                journal.settle(claim, DONE)
            if numbers(found) == [1, 2]:
                break
        await self.nothing_comes(journal)
        clock.advance(60)
        assert numbers(await self.claims(journal, 1)) == [3]

    async def test_a_note_makes_the_next_of_its_key_a_repeat_as_long_as_it_is_kept(self, journal: Journal, clock: ManualClock) -> None:
        def noted(n: int) -> list[Claim]:
            return [Claim("f", event(n), note=Note("once/a", b"%d" % n, 300))]

        assert await journal.accept([*noted(1), *noted(2)]) == [True, False]
        clock.advance(299)
        assert await journal.accept(noted(3)) == [False]
        assert await journal.get("once/a") == b"1"
        clock.advance(2)
        assert await journal.accept(noted(4)) == [True]
        journal.want("f", 9)
        assert numbers(await self.claims(journal, 2)) == [1, 4]

    async def receive(self, journal: Journal, count: int, wait: float = 0, hide: float = 30) -> list[Received]:
        received, spent = await journal.receive("sqs:f", count, hide, 5, wait=wait)
        assert spent == []
        return received

    async def test_of_a_key_one_batch_is_held_at_a_time(self, journal: Journal, clock: ManualClock) -> None:
        await journal.accept([*keyed("a", 1, 2, 3, of="sqs:f"), *keyed("b", 4, of="sqs:f"), *keyed("a", 5, of="sqs:f")])
        held = await self.receive(journal, 3)
        assert [int(it.event.data) for it in held] == [1, 2, 3]
        assert [int(it.event.data) for it in await self.receive(journal, 9)] == [4]
        first, second, third = held
        assert await journal.remove("sqs:f", second.id, 1)
        assert await self.receive(journal, 9) == []
        assert await journal.hide("sqs:f", first.id, 1, 0)
        assert await self.receive(journal, 9) == [], "the third is held"
        assert await journal.remove("sqs:f", third.id, 1)
        again = await self.receive(journal, 9)
        assert [(int(it.event.data), it.receives) for it in again] == [(1, 2), (5, 1)]
        clock.advance(31)
        assert [(int(it.event.data), it.receives) for it in await self.receive(journal, 9)] == [(1, 3), (5, 2), (4, 2)]
        assert not await journal.remove("sqs:f", again[1].id, 1)

    async def test_what_is_received_behind_another_waits_for_its_own_time(self, journal: Journal, clock: ManualClock) -> None:
        await journal.accept(keyed("a", 1, 2, 3, of="sqs:f"))
        first, _ = await self.receive(journal, 2)
        assert await journal.remove("sqs:f", first.id, 1)
        assert await self.receive(journal, 9) == [], "the second is held, and the third behind it"
        clock.advance(31)
        assert [(int(it.event.data), it.receives) for it in await self.receive(journal, 9)] == [(2, 2), (3, 1)]

    async def test_whoever_waits_for_messages_is_woken_by_whatever_brings_one(self, journal: Journal, clock: ManualClock) -> None:
        async def waits(brings: Callable[[], object]) -> list[int]:
            waiting = asyncio.ensure_future(self.receive(journal, 9, wait=20, hide=5))
            for _ in range(3):
                await journal.flush()
            assert not waiting.done()
            result = brings()
            if asyncio.iscoroutine(result):
                await result
            async with asyncio.timeout(10):
                return [int(it.event.data) for it in await waiting]

        async def accept(*made: Claim) -> None:
            await journal.accept(made)

        assert await waits(lambda: accept(*entries("sqs:f", 1))) == [1]
        assert await waits(lambda: clock.advance(5.1)) == [1], "seen again"
        await accept(Claim("sqs:f", event(2), delay=3))
        assert await waits(lambda: clock.advance(3.1)) == [2], "its delay is over"
        clock.advance(5)
        (one, two) = await self.receive(journal, 9)
        assert await waits(lambda: journal.hide("sqs:f", two.id, two.receives, 0)) == [2]
        journal.want("g", 1)
        await accept(*entries("g", 3))
        (claim,) = await self.claims(journal, 1)
        assert await waits(lambda: journal.settle(claim, DEAD, entries("sqs:f", 4))) == [4], "a copy"
        (letter,) = await journal.dead(LetterQuery())
        await journal.purge([letter.id])
        await accept(*keyed("a", 5, of="sqs:f"))
        (five,) = await self.receive(journal, 1)
        await accept(*keyed("a", 6, of="sqs:f"))
        assert await waits(lambda: journal.remove("sqs:f", five.id, 1)) == [6], "the next of its key"
        assert await journal.remove("sqs:f", one.id, one.receives)

    async def test_waiting_for_messages_ends_when_the_time_is_over_or_the_journal_closes(
        self, make: Callable[..., Journal], clock: ManualClock
    ) -> None:
        journal = make()
        await journal.open()
        waiting = asyncio.ensure_future(self.receive(journal, 9, wait=20))
        await journal.flush()
        clock.advance(19)
        await journal.flush()
        assert not waiting.done()
        clock.advance(1)
        async with asyncio.timeout(10):
            assert await waiting == []
        waiting = asyncio.ensure_future(self.receive(journal, 9, wait=20))
        await journal.flush()
        await journal.close()
        with pytest.raises(JournalError):
            await waiting

    async def test_what_nobody_holds_and_is_too_old_is_a_claim(self, journal: Journal, clock: ManualClock) -> None:
        await journal.accept([*entries("sqs:f", 1, 2), Claim("sqs:f", event(3), delay=500)])
        (held,) = await self.receive(journal, 1, hide=1000)
        clock.advance(100)
        await journal.accept(entries("sqs:f", 4))
        assert await journal.expired("sqs:f", 100, 9) == []
        clock.advance(1)
        (claim,) = await journal.expired("sqs:f", 100, 9)
        assert numbers([claim]) == [2]
        assert await journal.expired("sqs:f", 100, 9) == []
        journal.settle(claim, DEAD)
        clock.advance(899)
        assert sorted(numbers(await journal.expired("sqs:f", 100, 9))) == [1, 3, 4]
        assert not await journal.remove("sqs:f", held.id, 1)

    async def test_a_queue_is_cleared_of_all_that_waits(self, journal: Journal, clock: ManualClock) -> None:
        await self.bury(journal, "sqs:f", 0)
        await journal.accept(
            [*entries("sqs:f", 1, 2), *keyed("a", 3, 4, 5, of="sqs:f"), Claim("sqs:f", event(6), delay=5), *entries("g", 7)]
        )
        await self.receive(journal, 1)
        journal.want("sqs:f", 2)
        running = await self.claims(journal, 2)
        assert await journal.clear("sqs:f") == 4 + (len(running) == 1)
        assert await journal.clear("sqs:f") == 0
        for claim in running:
            journal.settle(claim, DONE)
        await journal.flush()
        assert await journal.depth() == {
            "sqs:f": {"waiting": 0, "running": 0, "dead": 1},
            "g": {"waiting": 1, "running": 0, "dead": 0},
        }

    async def test_the_depth_of_a_queue(self, journal: Journal, clock: ManualClock) -> None:
        assert await journal.queue_depth("sqs:f") == QueueDepth()
        await journal.accept([*entries("sqs:f", 1, 2, 3), *keyed("a", 4, 5, of="sqs:f"), Claim("sqs:f", event(6), delay=5)])
        await self.receive(journal, 1)
        journal.want("sqs:f", 1)
        await self.claims(journal, 1)
        assert await journal.queue_depth("sqs:f") == QueueDepth(available=3, held=2, delayed=1)
        clock.advance(31)
        assert await journal.queue_depth("sqs:f") == QueueDepth(available=5, held=1, delayed=0)

    # Questions

    async def test_where_an_event_is(self, journal: Journal, clock: ManualClock) -> None:
        it = event(1, "natural")
        await journal.accept([Claim("f", it), Claim("g", it)])
        assert {(w.function, w.state) for w in await journal.find("natural")} == {("f", "waiting"), ("g", "waiting")}
        journal.want("f", 1)
        (claim,) = await self.claims(journal, 1)
        assert {(w.function, w.state) for w in await journal.find("natural")} == {("f", "running"), ("g", "waiting")}
        journal.settle(claim, RetryAt(clock.time() + 5, 1))
        (where,) = await journal.find(claim.id)
        assert (where.state, where.attempts, where.due) == ("waiting", 1, clock.time() + 5)
        journal.want("g", 1)
        (other,) = await self.claims(journal, 1)
        journal.settle(other, DEAD)
        await journal.flush()
        (where,) = await journal.find(other.id)
        assert (where.id, where.function, where.state, where.attempts) == (other.id, "g", "dead", 3)
        assert await journal.find("unknown") == []

    async def test_history_remembers_what_is_done(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        journal = make(history=60)
        await journal.open()
        journal.want("f", 1)
        await journal.accept(entries("f", 1))
        (claim,) = await self.claims(journal, 1)
        journal.settle(claim, DONE)
        await journal.flush()
        (where,) = await journal.find(claim.id)
        assert (where.state, where.attempts, where.due) == ("done", 1, clock.time())
        assert await journal.depth() == {}
        clock.advance(61)
        assert await journal.find(claim.id) == []
        await journal.close()

    async def test_depth(self, journal: Journal) -> None:
        await journal.accept(entries("f", 1, 2, 3))
        journal.want("f", 1)
        await self.claims(journal, 1)
        await self.bury(journal, "g", 4)
        assert await journal.depth() == {
            "f": {"waiting": 2, "running": 1, "dead": 0},
            "g": {"waiting": 0, "running": 0, "dead": 1},
        }

    async def test_small_state(self, journal: Journal) -> None:
        assert await journal.get("a/k") is None
        assert await journal.put("a/k", b"1")
        assert await journal.get("a/k") == b"1"
        assert not await journal.put("a/k", b"2", expect=None)
        assert not await journal.put("a/k", b"2", expect=b"0")
        assert await journal.put("a/k", b"2", expect=b"1")
        await journal.put("a/j_", b"")
        await journal.put("b", b"")
        assert await journal.keys("a/") == ["a/j_", "a/k"]
        await journal.put("a/k", None)
        assert await journal.keys("a/") == ["a/j_"]

    # Opening and closing

    async def test_after_close_nothing_is_taken(self, make: Callable[..., Journal]) -> None:
        journal = make()
        await journal.open()
        waiting = asyncio.ensure_future(journal.claims())
        await asyncio.sleep(0)
        await journal.close()
        with pytest.raises(JournalError):
            await waiting
        with pytest.raises(JournalError):
            await journal.accept(entries("f", 1))
        await journal.close()

    async def test_what_was_not_settled_comes_again_uncharged(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        journal = make()
        await journal.open()
        journal.want("f", 2)
        await journal.accept([*entries("f", 1, 2, 3), Claim("f", event(4, "natural"))])
        one, two = await self.claims(journal, 2)
        journal.settle(two, RetryAt(clock.time() + 50, 1))
        await journal.put("k", b"v")
        await journal.close()
        journal = make()
        await journal.open()
        assert await journal.accept([Claim("f", event(4, "natural"))]) == [False]
        assert await journal.get("k") == b"v"
        journal.want("f", 10)
        again = await self.claims(journal, 3)
        assert numbers(again) == [1, 3, 4]
        assert (again[0].id, again[0].attempts, again[0].hint) == (one.id, 0, None)
        clock.advance(51)
        (retry,) = await self.claims(journal, 1)
        assert (retry.id, retry.attempts) == (two.id, 1)
        await journal.close()

    @pytest.mark.parametrize("seed", range(3))
    async def test_nothing_is_lost_and_nothing_done_twice(self, make: Callable[..., Journal], clock: ManualClock, seed: int) -> None:
        """Anything in any order, against a model of a few counters."""
        chance = random.Random(seed)
        journal = make()
        await journal.open()
        accepted, ended = 0, Counter[int]()
        held: list[Claim] = []
        for _ in range(300):
            step = chance.random()
            if step < 0.3:
                count = chance.randrange(1, 40)
                receipt = journal.accept([Claim(chance.choice("fg"), event(n)) for n in range(accepted, accepted + count)])
                accepted += count
                if chance.random() < 0.5:
                    await receipt
            elif step < 0.5:
                journal.want(chance.choice("fg"), chance.randrange(1, 30))
            elif step < 0.9:
                await journal.flush()
                taking = asyncio.ensure_future(journal.claims())
                await asyncio.sleep(0)
                if taking.done():
                    held += taking.result()
                else:
                    taking.cancel()
                    await asyncio.wait([taking])
                chance.shuffle(held)
                for claim in held[: chance.randrange(20)]:
                    how = chance.random()
                    decision: Any = (
                        DONE if how < 0.6 else Release() if how < 0.8 else RetryAt(clock.time() + chance.randrange(50), claim.attempts + 1)
                    )
                    journal.settle(claim, decision)
                    held.remove(claim)
                    ended[int(claim.event.data)] += decision is DONE
            elif step < 0.95 or not self.lasting:
                clock.advance(chance.randrange(20))
            else:
                await journal.close()
                held.clear()
                journal = make()
                await journal.open()
        for function in "fg":
            journal.want(function, 100_000)
        for claim in held:
            journal.settle(claim, Release())
        while ended.total() < accepted:
            clock.advance(60)
            async with asyncio.timeout(10):
                for claim in await journal.claims():
                    journal.settle(claim, DONE)
                    ended[int(claim.event.data)] += 1
        assert ended == Counter(range(accepted))
        await journal.flush()
        assert await journal.depth() == {}
        await journal.close()

    # The archive

    async def archived(self, journal: Journal, function: str = "f", since: float = 0, until: float = 1e12) -> list[int]:
        return [int(kept.event.data) for kept in await journal.archived(function, since, until)]

    async def test_without_an_archive_nothing_is_kept(self, journal: Journal) -> None:
        await journal.accept(entries("f", 1))
        assert await self.archived(journal) == []
        assert await journal.archived_functions() == []

    async def test_the_archive_has_what_was_accepted_whatever_became_of_it(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        journal = make(archive=3600)
        await journal.open()
        journal.want("f", 9)
        known = event(2, "known")
        began = clock.time()
        await journal.accept([*entries("f", 1), Claim("f", known), Claim("g", known), *entries("sqs:jobs", 7)])
        assert await journal.accept([Claim("f", known)]) == [False]
        done, dead = await self.claims(journal, 2)
        clock.advance(10)
        journal.settle(done, DONE, entries("f", 3))  # a copy that goes to a destination was accepted, too
        journal.settle(dead, DEAD)
        await journal.flush()
        clock.advance(10)
        await journal.accept(entries("f", 4))
        assert await self.archived(journal) == [1, 2, 3, 4]
        assert await self.archived(journal, "g") == [2]
        assert await self.archived(journal, "sqs:jobs") == [7]
        assert await journal.archived_functions() == ["f", "g", "sqs:jobs"]
        assert await self.archived(journal, since=began + 5) == [3, 4]
        assert await self.archived(journal, until=began + 15) == [1, 2, 3]
        assert await self.archived(journal, since=began + 5, until=began + 15) == [3]
        (first, *_, last) = await journal.archived("f", 0, 1e12)
        assert (first.id, first.at, first.event.attributes, last.at) == (done.id, began, {"n": 1}, began + 20)
        await journal.close()

    async def test_the_archive_is_read_in_pages(self, make: Callable[..., Journal]) -> None:
        journal = make(archive=3600)
        await journal.open()
        await journal.accept(entries("f", *range(250)))
        got: list[int] = []
        after = None
        while page := await journal.archived("f", 0, 1e12, after, 100):
            assert len(page) <= 100
            got += [int(kept.event.data) for kept in page]
            after = page[-1]
        assert got == list(range(250))
        await journal.close()

    async def test_what_is_replayed_is_not_archived_again(self, make: Callable[..., Journal]) -> None:
        journal = make(archive=3600)
        await journal.open()
        again = event(1)
        again.attributes = {"replay": "replay-1"}
        assert await journal.accept([Claim("f", again), *entries("f", 2)]) == [True, True]
        assert await self.archived(journal) == [2]
        await journal.close()

    async def test_the_archive_lets_go_of_what_is_too_old(self, make: Callable[..., Journal], clock: ManualClock) -> None:
        journal = make(archive=3600)
        await journal.open()
        await journal.accept(entries("f", *range(500)))
        clock.advance(3000)
        await journal.accept(entries("g", 1))
        assert len(await journal.archived("f", 0, 1e12)) == 500
        clock.advance(601)
        assert await self.archived(journal) == []  # though it is still there
        for number in range(20):
            await journal.accept(entries("g", number))
        assert await journal.archived_functions() == ["g"]
        assert len(await journal.archived("g", 0, 1e12)) == 21
        await journal.close()

    async def test_the_archive_outlives_the_router_and_ends_when_it_is_switched_off(self, make: Callable[..., Journal]) -> None:
        if not self.lasting:
            pytest.skip("it forgets")
        journal = make(archive=3600)
        await journal.open()
        await journal.accept(entries("f", 1, 2))
        await journal.close()
        journal = make(archive=3600)
        await journal.open()
        assert await self.archived(journal) == [1, 2]
        await journal.close()
        journal = make()
        await journal.open()
        for _ in range(3):
            await journal.accept(entries("f", 3))
        assert await self.archived(journal) == []
        assert await journal.archived_functions() == []
        await journal.close()

    async def test_a_clock_that_was_ahead_does_not_keep_the_archive_for_ever(
        self, make: Callable[..., Journal], clock: ManualClock
    ) -> None:
        journal = make(archive=3600)
        await journal.open()
        right = clock.time()
        clock.set(1e7)
        await journal.accept(entries("f", 1))
        clock.set(-1e7)
        await journal.accept(entries("g", 1))
        assert [kept.at for kept in await journal.archived("f", 0, 1e12)] == [right]
        clock.advance(3601)
        await journal.accept(entries("g", 2))
        assert await journal.archived_functions() == ["g"]
        await journal.close()
