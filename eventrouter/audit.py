"""The audit log as operators see it: who did what, in CloudTrail's shape; its segment files, and whether it is whole.

The journal keeps the chain (`journal/books`); what is old is moved into files, each compressed and listed in the journal with its digest.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import logging
import os
import pwd
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from eventrouter.clock import Clock
from eventrouter.errors import JournalError
from eventrouter.journal.books import Check, Fault, line, link
from eventrouter.journal.protocol import Block, Books, Head, Ledger, claim_id, numbers
from eventrouter.model import ACCOUNT, REGION, function_arn, iso_time, new_id

log = logging.getLogger("eventrouter")
_PAGE: Final = 5_000  # records that are read from the journal at a time
_EVERY: Final = 60.0  # seconds between looks whether there is enough for a file
_HIDDEN: Final = frozenset({"payload", "arguments", "options", "value", "plaintext", "secret", "body"})  # may be anybody's secret
_VERSION: Final = "1.11"  # of CloudTrail's records
_TEXT: Final = 1000  # characters of an error message


class Who(msgspec.Struct, frozen=True):
    """A user of this machine, and the process that speaks for it."""

    uid: int
    name: str
    pid: int

    @classmethod
    def of(cls, uid: int, pid: int) -> Who:
        try:
            return cls(uid, pwd.getpwuid(uid).pw_name, pid)
        except KeyError:
            return cls(uid, str(uid), pid)

    @classmethod
    def me(cls) -> Who:
        return cls.of(os.getuid(), os.getpid())


class Query(msgspec.Struct, frozen=True):
    """Which records: all that is given must hold; the newest `limit` of them, or all when it is 0.

    function: that was invoked, or that an operator's command was about. since, until: seconds since 1970. who: a user's name, or the
    source that started a function. outcome: "succeeded", "failed", or an error code.
    """

    function: str | None = None
    since: float | None = None
    until: float | None = None
    who: str | None = None
    outcome: str | None = None
    limit: int = 1000


class Verified(msgspec.Struct, frozen=True):
    """fault: the first, if there is any. last, hash: of the last record; who notes them elsewhere can hold a later log against them."""

    records: int
    segments: int
    last: int
    hash: str
    fault: Fault | None = None


def read_key(folder: Path) -> bytes:
    """The key of the log's seals, made if there is none. Raises JournalError when others could read it."""
    path = folder / "key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
                raise JournalError(f"{path}: others may read it (mode {mode:04o}), and forge the audit log; `chmod 600 {path}`") from None
            return path.read_bytes()
        key = os.urandom(32)
        with os.fdopen(file, "wb") as opened:
            opened.write(key)
            opened.flush()
            os.fsync(file)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}; the audit log needs it") from None
    return key


class Trail:
    """folder: of the segment files and the key; None: the log is in memory with its journal. segment: records of a file."""

    def __init__(self, books: Books, clock: Clock, folder: Path | None, segment: int) -> None:
        self._books = books
        self._clock = clock
        self._folder = folder
        self._segment = segment
        self._task: asyncio.Task[None] | None = None
        self._still = asyncio.Lock()  # nothing is moved into a file while it is read

    # Acts. What was asked is on disk before it is done, what came of it after: a crash can't hide an act.

    async def asked(self, who: Who, act: str, parameters: dict[str, Any]) -> str:
        """An operator's act begins; the id of it. Raises JournalError when it can't be recorded; then it must not be done."""
        id, at = new_id(), int(self._clock.time() * 1000)
        shown = {name: "(not recorded)" if name in _HIDDEN and value else value for name, value in parameters.items()}
        await self._books.enter(Ledger((), line(("a", at, act, shown, [who.uid, who.name, who.pid], id))))
        return id

    async def answered(self, id: str, result: Any = None, *, error: str = "", message: str = "") -> None:
        """What came of an act. result: a small one is recorded. error: the name of its type; empty: it was done."""
        kept = result if isinstance(result, int | float | bool | None) else None
        text = message.encode(errors="replace").decode()[:_TEXT]
        row = ("e", int(self._clock.time() * 1000), id, kept, error, text)
        try:
            await self._books.enter(Ledger((), line(row)))
        except JournalError as failed:  # it was done, and that it was asked for is on disk
            log.error("what came of %s is not recorded: %s", id, failed, extra={"action": "audit.lost"})

    # Files

    def start(self) -> None:
        """Move what is old into files from now on."""
        if self._folder is not None:
            self._task = asyncio.create_task(self._rotate(), name="audit")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _rotate(self) -> None:
        while True:
            try:
                while await self.rotate():
                    pass
            except (OSError, JournalError) as error:
                log.error("the audit log stays in the journal: %s", error, extra={"action": "audit.rotate"})
            await asyncio.sleep(_EVERY)

    async def rotate(self) -> bool:
        """Move the oldest records into a file, if there are enough of them."""
        assert self._folder is not None
        async with self._still:
            head = await self._books.head()
            after = head.files[-1][1] if head.files else 0
            if head.last - after < self._segment:
                return False
            blocks: list[Block] = []
            count = 0
            while count < self._segment:
                for block in (await self._books.blocks(after, _PAGE))[0]:
                    if count < self._segment:
                        blocks.append(block)
                        count += block.last + 1 - block.first
                        after = block.last
            digest = await asyncio.to_thread(_write, self._folder, blocks, after)
            await self._books.filed(blocks[0].first, after, digest)
        return True

    async def _pages(self) -> AsyncIterator[Sequence[Block] | Fault | Head]:
        """Blocks in their order, a file or a page at a time, then where they end; a Fault where a file is not what it was."""
        head = await self._books.head()
        if self._folder is not None:
            for first, last, digest in head.files:
                yield await asyncio.to_thread(_read, self._folder, first, last, digest)
        at, page = head.files[-1][1] if head.files else 0, list[Block]()
        while True:
            page, head = await self._books.blocks(at, _PAGE)
            if not page:
                break
            yield page
            at = page[-1].first
        yield head

    # What is asked of it

    async def verify(self, known: tuple[int, str] | None = None) -> Verified:
        """Go through all of it. known: number and hash of a record, as an earlier `Verified` had them."""
        going = Check(b"" if self._folder is None else read_key(self._folder))
        fault: Fault | None = None
        head, seen = Head(0, b"", b"", []), ""
        async with self._still:
            async for page in self._pages():
                if isinstance(page, Fault):
                    fault = page
                elif isinstance(page, Head):
                    head = page
                    fault = going.head(head) or self._strange(head)
                else:
                    fault = await asyncio.to_thread(_check, going, page)
                    for block in page:
                        if known is not None and block.first <= known[0] <= block.last:
                            seen = next((chain.hex() for at, record, chain in block.numbered() if at + numbers(record) > known[0]), "")
                if fault is not None:
                    break
        if fault is None and known is not None and seen != known[1].lower():
            fault = Fault(known[0], f"record {known[0]} has not the hash that it had: the log was written anew from there or before")
        return Verified(going.last, len(head.files), head.last, head.hash.hex(), fault)

    def _strange(self, head: Head) -> Fault | None:
        """A file that the journal doesn't list; but what is still in the journal may have been written and not yet listed, at a crash."""
        listed = {_name(*file) for file in head.files}
        end = head.files[-1][1] if head.files else 0
        for path in [] if self._folder is None else sorted(self._folder.glob("*.gz")):
            first = int(path.name.partition("-")[0]) if path.name[:1].isdigit() else 0
            if first <= end and path.name not in listed:
                return Fault(first, f"{path.name}, of record {first} and more, is not in the journal's list: it is of another journal")
        return None

    async def query(self, wanted: Query) -> list[dict[str, Any]]:
        """CloudTrail records, oldest first."""
        found, open_acts = list[dict[str, Any]](), dict[str, dict[str, Any]]()
        async with self._still:
            async for page in self._pages():
                if isinstance(page, Fault):
                    raise JournalError(f"{page.what}; `eventrouter audit verify` tells more")
                if isinstance(page, Head):
                    break
                found += await asyncio.to_thread(_matching, page, wanted, open_acts)
                if wanted.limit and len(found) > 2 * wanted.limit:
                    found = [it for it in found if it["requestID"] in open_acts or _ended_so(it, wanted.outcome)][-wanted.limit :]
        found = [record for record in found if _ended_so(record, wanted.outcome)]
        return found[-wanted.limit :] if wanted.limit else found


def _check(going: Check, page: Sequence[Block]) -> Fault | None:
    return next((fault for block in page if (fault := going.block(block)) is not None), None)


def _name(first: int, last: int, digest: bytes) -> str:
    return f"{first:012d}-{last:012d}-{digest[:6].hex()}.jsonl.gz"


def _write(folder: Path, blocks: Sequence[Block], last: int) -> bytes:
    """A file of them, on disk when it returns; its digest."""
    text = bytearray()
    for block in blocks:
        for record, chain in zip(block.records, block.hashes, strict=True):
            text += b"%b %b\n" % (chain.hex().encode(), record)
        text += b"= %b\n" % block.seal.hex().encode()
    data = gzip.compress(bytes(text), mtime=0)
    digest = hashlib.sha256(data).digest()
    path = folder / _name(blocks[0].first, last, digest)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.chmod(0o400)
    part.replace(path)
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
    return digest


def _read(folder: Path, first: int, last: int, digest: bytes) -> list[Block] | Fault:
    name = _name(first, last, digest)
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        return Fault(first, f"records {first} to {last} are missing: {name}: {error.strerror}")
    try:
        blocks = list(_blocks(gzip.decompress(data), first, name))
    except (OSError, EOFError, ValueError) as error:  # zlib's is an Exception of its own
        return Fault(first, f"records {first} to {last} can't be read: {name}: {error}")
    except Exception as error:
        return Fault(first, f"records {first} to {last} can't be read: {name}: {type(error).__name__}: {error}")
    if not hmac.compare_digest(hashlib.sha256(data).digest(), digest):
        return _first_fault(blocks) or Fault(first, f"{name} is not the file that was written, for records {first} to {last}")
    return blocks


def _first_fault(blocks: Sequence[Block]) -> Fault | None:
    """In a file that was altered: which record, as far as it can be told by what is in the file alone."""
    chain: bytes | None = None
    for block in blocks:
        for number, record, stored in block.numbered():
            if chain is not None and link(chain, record) != stored:
                return Fault(number, f"record {number} in {block.place} is not what was written: it, or the one before it, was edited")
            chain = stored
    return None


def _blocks(text: bytes, first: int, name: str) -> Iterator[Block]:
    records, hashes = list[bytes](), list[bytes]()
    for row in text.split(b"\n"):
        chain, _, rest = row.partition(b" ")
        if chain == b"=":
            yield (block := Block(first, records, hashes, bytes.fromhex(rest.decode()), name))
            first = block.last + 1
            records, hashes = [], []
        elif row:
            records.append(rest)
            hashes.append(bytes.fromhex(chain.decode()))
    if records:
        yield Block(first, records, hashes, b"", name)


# CloudTrail's shape


def _matching(page: Sequence[Block], wanted: Query, open_acts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of these, what is asked for; of acts whose end has not been seen, whatever their outcome. open_acts: those, by id."""
    found = []
    for block in page:
        for number, record, chain in block.numbered():
            row = msgspec.json.decode(record)
            if row[0] == "e":
                if (act := open_acts.pop(row[2], None)) is not None:
                    _end(act, row)
            elif row[0] == "s":
                for place, each in enumerate(_of_run(row)):
                    if _fits(each, wanted) and wanted.outcome in (None, "succeeded"):
                        own = hashlib.sha256(chain + b"%d" % place).digest()
                        found.append(_invocation(number + place, own, each))
            elif not _fits(row, wanted):
                continue
            elif row[0] == "a":
                made = open_acts[row[5]] = _act(number, chain, row)
                found.append(made)
            elif _ended_so(made := _invocation(number, chain, row), wanted.outcome):
                found.append(made)
    return found


def _of_run(row: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Of each invocation of a run the record that it would have by itself (`accounts` has both shapes)."""
    _, _, name, memory, since, ended, each = row
    ends = [began for began, *_ in each[1:]]  # it took until the next began
    for (began, source, event, id, attempts), end in zip(each, [*ends, ended], strict=True):
        yield "i", int((since + began) * 1000), int((end - began) * 1e6), name, memory, "", source, event, id, attempts + 1, 1


def _fits(row: Sequence[Any], wanted: Query) -> bool:
    at = row[1] / 1000
    if (wanted.since is not None and at < wanted.since) or (wanted.until is not None and at >= wanted.until):
        return False
    act = row[0] == "a"
    function, who = (row[3].get("function"), row[4][1]) if act else (row[3], row[6])
    return wanted.function in (None, function) and wanted.who in (None, who)


def _ended_so(record: dict[str, Any], outcome: str | None) -> bool:
    error = record.get("errorCode")
    return outcome in (None, "succeeded" if error is None else "failed", error)


def _record(number: int, chain: bytes, at: float, name: str, request: str, who: dict[str, Any], agent: str) -> dict[str, Any]:
    id = chain.hex()
    return {
        "eventVersion": _VERSION,
        "userIdentity": who,
        "eventTime": iso_time(at / 1000),
        "eventSource": "lambda.amazonaws.com",
        "eventName": name,
        "awsRegion": REGION,
        "sourceIPAddress": who.get("invokedBy", "127.0.0.1"),
        "userAgent": agent,
        "requestParameters": None,
        "responseElements": None,
        "additionalEventData": {"record": number},
        "requestID": request,
        "eventID": f"{id[:8]}-{id[8:12]}-{id[12:16]}-{id[16:20]}-{id[20:32]}",
        "readOnly": False,
        "eventType": "AwsApiCall",
        "recipientAccountId": ACCOUNT,
    }


def _invocation(number: int, chain: bytes, row: Sequence[Any]) -> dict[str, Any]:
    kind, at, took, function, memory, error, source, event, id, attempt, count = row
    by = f"{source}.eventrouter"
    request = claim_id(id) if isinstance(id, int) else id
    made = _record(number, chain, at, "Invoke", request, {"type": "AWSService", "invokedBy": by}, by)
    made["requestParameters"] = {"functionName": function, "invocationType": "Event" if kind == "i" else "RequestResponse"}
    made["additionalEventData"] |= {
        "functionVersion": "$LATEST", "eventId": event, "events": count, "attempt": attempt,
        "durationMicroseconds": took, "memoryMB": memory,
    }  # fmt: skip
    made["resources"] = [{"accountId": ACCOUNT, "type": "AWS::Lambda::Function", "ARN": function_arn(function)}]
    if error:
        made["errorCode"] = error
    return {**made, "managementEvent": False, "eventCategory": "Data"}


def _act(number: int, chain: bytes, row: Sequence[Any]) -> dict[str, Any]:
    _, at, act, parameters, (uid, user, pid), id = row
    who = {
        "type": "IAMUser", "principalId": str(uid), "arn": f"arn:aws:iam::{ACCOUNT}:user/{user}", "accountId": ACCOUNT, "userName": user,
    }  # fmt: skip
    name = "".join(word.title() for word in act.split("_"))
    made = _record(number, chain, at, name, id, who, f"eventrouter (pid {pid})")
    made["requestParameters"] = parameters
    function = parameters.get("function")
    if function:
        made["resources"] = [{"accountId": ACCOUNT, "type": "AWS::Lambda::Function", "ARN": function_arn(function)}]
    return {**made, "managementEvent": True, "eventCategory": "Management"}


def _end(made: dict[str, Any], row: Sequence[Any]) -> None:
    _, _, _, result, error, message = row
    if result is not None:
        made["responseElements"] = {"result": result}
    if error:
        made |= {"errorCode": error, "errorMessage": message}
