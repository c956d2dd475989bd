"""One result for what is one piece of work: results outlive the process, leases never outlive their attempt."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import msgspec

from eventrouter.errors import JournalError
from eventrouter.journal.protocol import Journal, Note
from eventrouter.model import Failed, Outcome, Response, Succeeded


class _Result(msgspec.Struct, array_like=True):
    """response: the result was an HTTP answer."""

    result: msgspec.Raw
    response: bool


_decode = msgspec.msgpack.Decoder(_Result).decode


class Results:
    """Leases are of this process: the death of an attempt, or of the router, leaves none behind."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._leases: dict[str, asyncio.Future[None]] = {}

    async def once(self, function: str, key: str, ttl: float, attempt: Callable[[], Awaitable[Outcome]]) -> tuple[Outcome, Note | None]:
        """The first result, without an attempt, if there is one; else the attempt's outcome, and a note to be written with it."""
        place = f"result/{function}/{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"
        while (other := self._leases.get(place)) is not None:
            await asyncio.wait([other])
        lease = self._leases[place] = asyncio.get_running_loop().create_future()
        try:
            try:
                found = await self._journal.get(place)
            except JournalError as error:
                return Failed("JournalError", str(error)), None
            if found is not None:
                return Succeeded(_restore(found)), None
            outcome = await attempt()
            if not isinstance(outcome, Succeeded):
                return outcome, None
            try:
                return outcome, Note(place, _keep(outcome.result), ttl)
            except (TypeError, ValueError, OverflowError) as error:
                return unserializable(error), None
        finally:
            del self._leases[place]
            lease.set_result(None)


def unserializable(error: Exception) -> Failed:
    """A result that must be written down and can't be."""
    return Failed("Runtime.MarshalError", f"the handler's result can't be written as JSON: {error}")


def _keep(result: object) -> bytes:
    encode = msgspec.msgpack.encode
    return encode(_Result(msgspec.Raw(encode(result)), isinstance(result, Response)))


def _restore(stored: bytes) -> object:
    it = _decode(stored)
    return msgspec.msgpack.decode(it.result, type=Response if it.response else object)
