"""Throw garbage at encrypted values and at the control socket, and see that nothing but the errors that are meant comes of it.

    python tests/fuzz/governance.py secrets --seconds 600
    python tests/fuzz/governance.py control --seconds 600 --seed 7

It prints its seed, which makes it do the same again, and fails with what was thrown.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec

from eventrouter import App, on
from eventrouter.control import ControlServer, socket_path
from eventrouter.errors import BadOption, SecretError
from eventrouter.operations import Operations
from eventrouter.secrets import VARIABLE, KeyRing, Secret, Vault, rewrap_file, seal, unseal
from support import local, running

JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 2**70, "", "x", "\0", "é" * 300, "evr1:", [], [[]], {}, {"": {}}, {"function": 1}, [1, "a", None],
    "../../etc",
)  # fmt: skip


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Some bytes are changed, left out, doubled, or put elsewhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not changed:
            break
        at, length = chance.randrange(len(changed)), chance.randint(1, 16)
        match chance.randrange(5):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                changed[at:at] = chance.randbytes(length)
            case _:
                part = changed[at : at + length]
                del changed[at : at + length]
                to = chance.randint(0, len(changed))
                changed[to:to] = part
    return bytes(changed)


def fault_of(kind: type[Exception], call: Callable[[], object]) -> str:
    """What an error of that kind says; empty: there was none."""
    try:
        call()
    except kind as error:
        return str(error)
    return ""


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text[5:] + "=" * (-len(text[5:]) % 4))


def encoded(data: bytes) -> str:
    return "evr1:" + base64.urlsafe_b64encode(data).decode().rstrip("=")


# Encrypted values


class Secrets:
    """Each round: a value that was tampered with opens nothing, and one that was not only what is its own."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._chance = chance
        self._folder = folder
        self._keys = KeyRing(folder / "master.keys", {})
        self._keys.create()
        self._keys.rotate()
        owners = [("", ""), ("a", ""), ("a", "X"), ("b", "X"), ("b", "Y")]
        self._values = {seal(self._keys, f"plain {n}", *owner): (f"plain {n}", *owner) for n, owner in enumerate(owners * 3)}

    def round(self) -> None:
        chance = self._chance
        text = chance.choice(list(self._values))
        chance.choice((self._tampered, self._swapped, self._asked_for, self._garbage, self._ring, self._file))(text)

    def _refused(self, text: str) -> None:
        fault = fault_of(SecretError, lambda: unseal(self._keys, text))
        assert fault, f"{text!r} was opened"
        assert "plain" not in fault, text

    def _tampered(self, text: str) -> None:
        data = mutated(self._chance, decoded(text))
        if data != decoded(text):
            self._refused(encoded(data))

    def _swapped(self, text: str) -> None:
        """The parts of one value in another's place."""
        mine, other = (msgspec.msgpack.decode(decoded(each)) for each in (text, self._chance.choice(list(self._values))))
        before = list(mine)
        for part in self._chance.sample(range(len(mine)), self._chance.randint(1, 4)):
            mine[part] = other[part] if self._chance.random() < 0.7 else self._chance.choice(JUNK)
        if mine not in (other, before):
            try:
                self._refused(encoded(msgspec.msgpack.encode(mine)))
            except OverflowError:  # of the number that MessagePack has no room for
                return

    def _asked_for(self, text: str) -> None:
        """Whoever asks, and whatever is in its `env`: it opens for its own."""
        plain, function, variable = self._values[text]
        asks = self._chance.choice("abc")
        env: dict[str, Any] = {}
        for name in "XYZ":
            if self._chance.random() < 0.6:
                held = self._chance.choice((text, self._chance.choice(list(self._values))))
                env[name] = Secret(held) if self._chance.random() < 0.8 else held
        has = {name for name, value in env.items() if value == Secret(text)}
        may = (not function and bool(has)) or (function == asks and (not variable or variable in has))
        got: list[str] = []
        fault_of(SecretError, lambda: got.append(Vault(self._keys).decrypt(asks, env, text)))
        assert got == ([plain] if may else []), (asks, env, text)

    def _garbage(self, text: str) -> None:
        chance = self._chance
        junk = chance.choice(
            (encoded(chance.randbytes(chance.randrange(200))), text[: chance.randrange(len(text))], text + "A", text.swapcase())
        )
        junk = chance.choice((junk, junk.replace("evr1", "evr2"), "".join(chr(chance.randrange(0x3000)) for _ in range(50))))
        if junk not in self._values:
            self._refused(junk)
            fault = fault_of(BadOption, lambda: Secret(junk))
            assert junk not in fault or len(junk) < 3, junk

    def _ring(self, text: str) -> None:
        """Keys that are damaged."""
        ring = mutated(self._chance, self._keys.file.read_bytes()).decode("latin-1")
        for keys in (KeyRing(self._folder / "none", {VARIABLE: ring}), KeyRing(self._folder / "damaged", {})):
            keys.file.write_text(ring)
            keys.file.chmod(0o600)
            got: list[str] = []
            fault = fault_of(SecretError, lambda keys=keys, got=got: got.append(unseal(keys, text)))  # type: ignore[misc]
            assert fault or got == [self._values[text][0]]
            assert not any(len(line) > 20 and line in fault for line in ring.split()), "a key in an error"
        (self._folder / "none").unlink()

    def _file(self, text: str) -> None:
        file = self._folder / "config"
        data = mutated(self._chance, f'a = "{text}"\nb = "{text}"\n'.encode())
        file.write_bytes(data)
        if fault_of(SecretError, lambda: rewrap_file(self._keys, file)):
            assert file.read_bytes() == data


# The control socket


class _Crashes(logging.Handler):
    """Keeps what should never be logged: that a command failed in a way that nobody has thought of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "action", "") == "control.failed" or record.name == "asyncio":
            self.found.append(record)


COMMANDS = sorted(name for name in vars(Operations) if not name.startswith("_"))


class Control:
    """Each round: a connection with what no client would send. Afterwards the router answers as ever."""

    def __init__(self, app: App, chance: random.Random) -> None:
        self._chance = chance
        self._path = socket_path(app.config.data)
        self._key = (app.config.data / "control.key").read_text()
        self.crashes = _Crashes()
        logging.getLogger().addHandler(self.crashes)

    async def round(self) -> None:
        sent = self._request()
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            for part in self._parts(sent):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if self._chance.random() < 0.7:
                writer.write_eof()
                answer = await reader.read()
                assert answer == b"" or set(json.loads(answer)) in ({"result"}, {"error", "usage"}), (sent[:500], answer[:500])
            writer.close()
        except ConnectionError:  # it need not read to the end what is none of its language
            pass
        assert not self.crashes.found, (sent[:500], [logging.Formatter().format(record) for record in self.crashes.found])

    async def answers(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path)
        writer.write(json.dumps({"command": "status", "arguments": {}, "key": self._key}).encode() + b"\n")
        assert json.loads(await reader.readline())["result"]["pid"] == os.getpid()
        writer.close()

    def _request(self) -> bytes:
        chance = self._chance
        command = chance.choice([*COMMANDS, "_app", "__init__", "__class__", "nothing", 5, None])
        arguments: Any = {name: self._value() for name in chance.sample(_NAMES, chance.randrange(5))}
        if chance.random() < 0.5 and command in COMMANDS:
            arguments = {name: self._value() for name in Operations.__dict__[command].__annotations__ if name != "return"}
        request = {"command": command, "arguments": chance.choice((arguments, arguments, arguments, self._value()))}
        if chance.random() < 0.9:
            request["key"] = self._key
        data = json.dumps(request).encode() + b"\n"
        match chance.randrange(6):
            case 0:
                return mutated(chance, data)
            case 1:
                return chance.randbytes(chance.randrange(2000))
            case 2:
                return data[:-1] * chance.randrange(3)
            case 3:
                return b"[" * chance.randrange(100_000) + data
        return data

    def _value(self) -> Any:
        chance = self._chance
        return chance.choice((*JUNK, "handler", "later", ["a"], {"since": 5.0}, {"id": "x"}, {"a": ["b"]}))

    def _parts(self, data: bytes) -> list[bytes]:
        cut = self._chance.randint(0, len(data))
        return [data] if self._chance.random() < 0.7 else [data[:cut], data[cut:]]


_NAMES = sorted({name for command in COMMANDS for name in Operations.__dict__[command].__annotations__} - {"return"})


async def fuzz_control(folder: Path, chance: random.Random, going: Callable[[], bool]) -> int:
    @on(local("a"))
    async def handler(payload: Any) -> Any:
        return payload

    @on(local("b"))
    async def later(n: int) -> None: ...

    count = 0
    async with running(folder, handler, later) as app, _serving(app):
        fuzz = Control(app, chance)
        try:
            while going():
                await asyncio.gather(*(fuzz.round() for _ in range(8)))
                count += 8
            await fuzz.answers()
        finally:
            logging.getLogger().removeHandler(fuzz.crashes)
    return count


def _serving(app: App) -> ControlServer:
    return ControlServer(Operations(app, echo=False), app.config.data)


def fuzz_secrets(folder: Path, chance: random.Random, going: Callable[[], bool]) -> int:
    fuzz, count = Secrets(folder, chance), 0
    while going():
        fuzz.round()
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["secrets", "control"])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    options = parser.parse_args()
    print("seed", options.seed, flush=True)
    logging.getLogger("eventrouter").setLevel(logging.CRITICAL + 1)
    end = time.monotonic() + options.seconds
    going, chance = (lambda: time.monotonic() < end), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "secrets":
            count = fuzz_secrets(Path(folder), chance, going)
        else:
            logging.getLogger("eventrouter").setLevel(logging.ERROR)
            logging.getLogger("eventrouter").addFilter(lambda record: getattr(record, "action", "") == "control.failed")
            count = asyncio.run(fuzz_control(Path(folder), chance, going))
    print(f"{count:,} rounds, nothing found")


if __name__ == "__main__":
    main()
