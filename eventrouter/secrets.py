"""Encrypted configuration: each value under a data key of its own, and that one wrapped by a master key.

What `eventrouter secrets encrypt` prints is `evr1:` and, in base64: which master key, the wrapped data key, the sealed value, and whose it
is. The latter, the names of a function and a variable, are additional data of both encryptions, so that nobody can change them.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from eventrouter.errors import BadOption, ConfigError, SecretError

VARIABLE: Final = "EVENTROUTER_MASTER_KEY"
FILE: Final = "master.keys"  # in DIR
_PREFIX: Final = "evr1:"
_TEXT: Final = re.compile(rf"{_PREFIX}[A-Za-z0-9_-]+")
_KEY: Final = 32  # bytes
_NONCE: Final = 12
_MOST: Final = 64 * 1024  # bytes of a value


class _Sealed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """key: which master key wrapped the data key. function, variable: whose the value is; empty: not bound to one."""

    key: str
    wrapped: bytes
    value: bytes
    function: str = ""
    variable: str = ""

    @property
    def context(self) -> dict[str, str]:
        return {"function": self.function, "variable": self.variable}


_decode = msgspec.msgpack.Decoder(_Sealed).decode
_encode = msgspec.msgpack.Encoder().encode


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """`env={"TOKEN": Secret("evr1:...")}`: a variable that stays encrypted until its handler calls `context.decrypt`.

    secret: what `eventrouter secrets encrypt` printed. Raises ConfigError for anything else.
    """

    secret: str

    def __post_init__(self) -> None:
        _read(self.secret)

    def check(self, function: str, variable: str) -> None:
        """Raises ConfigError when it was encrypted for another function, or another variable."""
        sealed = _read(self.secret)
        if sealed.function not in ("", function) or sealed.variable not in ("", variable):
            raise ConfigError(f"env {variable}: its secret was encrypted for {_whose(sealed)}; encrypt it for {function} {variable}")

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__


class MasterKeys(Protocol):
    """Where master keys are: a ring of them here, or a plugin's key service, which they never leave.

    context: what is bound to the key; it must be the same when it is unwrapped.
    """

    def wrap(self, key: bytes, context: Mapping[str, str]) -> tuple[str, bytes]:
        """Which master key is the present one, and a data key wrapped by it. Raises SecretError."""

    def unwrap(self, id: str, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The data key. Raises SecretError."""


def seal(keys: MasterKeys, value: str, function: str = "", variable: str = "") -> str:
    """Encrypt a value, for one function, and for one of its variables, if they are given. Raises SecretError."""
    try:
        plain = value.encode()
    except UnicodeEncodeError:
        raise SecretError("the value is no text; encode what is binary in base64 first") from None
    if len(plain) > _MOST:
        raise SecretError(f"the value has {len(plain):,} bytes, {_MOST:,} is the most; keep what is larger in a file")
    context = {"function": function, "variable": variable}
    data_key = os.urandom(_KEY)
    id, wrapped = keys.wrap(data_key, context)
    return _write(_Sealed(id, wrapped, _lock(data_key, plain, context), function, variable))


def unseal(keys: MasterKeys, text: str) -> str:
    """What was encrypted, whoever's it is. Raises SecretError."""
    sealed = _understood(text)
    plain = _unlock(keys.unwrap(sealed.key, sealed.wrapped, sealed.context), sealed.value, sealed.context)
    if plain is None:
        raise SecretError(_DAMAGED)
    return plain.decode()


def whose(text: str) -> dict[str, str]:
    """`{"function", "variable"}` that a value was encrypted for; empty: it is not bound to one. Raises SecretError."""
    return _understood(text).context


def rewrap(keys: MasterKeys, text: str) -> str:
    """The same value, its data key wrapped by the present master key. Raises SecretError."""
    sealed = _understood(text)
    id, wrapped = keys.wrap(keys.unwrap(sealed.key, sealed.wrapped, sealed.context), sealed.context)
    return _write(msgspec.structs.replace(sealed, key=id, wrapped=wrapped))


def rewrap_file(keys: MasterKeys, file: Path) -> int:
    """`rewrap` every encrypted value in a text file; all or none of them. How many there were. Raises SecretError naming the line."""
    try:
        before = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"{file} can't be read: {error}") from None
    count = 0

    def again(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        try:
            return rewrap(keys, match[0])
        except SecretError as error:
            raise SecretError(f"{file}:{before.count(chr(10), 0, match.start()) + 1}: {error}; nothing was changed") from None

    after = _TEXT.sub(again, before)
    if count:
        _replace(file.resolve(), after, stat.S_IMODE(file.stat().st_mode))
    return count


class Vault:
    """Decrypts for functions, each what is its own."""

    def __init__(self, keys: MasterKeys) -> None:
        self.keys = keys

    def decrypt(self, function: str, env: Mapping[str, Any], text: str) -> str:
        """What a function gets: a value that is bound to it, or one of its `env`. Raises SecretError."""
        sealed = _understood(text)
        mine = {name for name, value in env.items() if isinstance(value, Secret) and value.secret == text}
        if sealed.function not in ("", function) or not (sealed.function or mine):
            raise SecretError(f"{function} can't decrypt what is encrypted for {_whose(sealed)}")
        if sealed.variable and sealed.variable not in mine:
            raise SecretError(f"{function} can't decrypt what is encrypted for {_whose(sealed)}, and is not there")
        return unseal(self.keys, text)


class KeyRing:
    """Master keys of one's own, a line of base64 each, the present one first: in a file, or in the environment, which goes first.

    They are read anew for each use: so a rotation takes effect at once, and none stays in memory.
    """

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self.file = file
        self._environ = environ

    @property
    def in_file(self) -> bool:
        return VARIABLE not in self._environ

    @property
    def exists(self) -> bool:
        return not self.in_file or self.file.exists()

    @property
    def where(self) -> str:
        return str(self.file) if self.in_file else VARIABLE

    def ids(self) -> list[str]:
        """Of the keys, the present one's first. Raises SecretError when there are none, or others could read them."""
        return list(self._keys())

    def wrap(self, key: bytes, context: Mapping[str, str]) -> tuple[str, bytes]:
        id, master = next(iter(self._keys().items()))
        return id, _lock(master, key, context)

    def unwrap(self, id: str, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        master = self._keys().get(id)
        if master is None:
            raise SecretError(f"master key {id!r} is not in {self.where}; put it back there, or encrypt the value again")
        key = _unlock(master, wrapped, context)
        if key is None:
            raise SecretError(_DAMAGED)
        return key

    def create(self) -> str:
        """Make the file with a first key; its id. Raises SecretError when there is one."""
        return self._add(first=True)

    def rotate(self) -> str:
        """Make a new key the present one; its id. The others stay, for what they have encrypted."""
        return self._add(first=False)

    def _add(self, *, first: bool) -> str:
        if not self.in_file:
            raise SecretError(f"the master keys are those of {VARIABLE}; put a new one before them there, with a space between")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.file.parent):
                if first and self.file.exists():
                    raise SecretError(f"{self.file} is there already; `eventrouter secrets rotate` adds a key")
                present = [] if first else [base64.b64encode(key).decode() for key in self._keys().values()]
                new = os.urandom(_KEY)
                _replace(self.file, "\n".join([base64.b64encode(new).decode(), *present, ""]), 0o600)
        except OSError as error:
            raise SecretError(f"{self.file} can't be written: {error.strerror or error}") from None
        return _id(new)

    def _keys(self) -> dict[str, bytes]:
        keys: dict[str, bytes] = {}
        for number, line in enumerate(self._text().split(), 1):
            try:
                key = base64.b64decode(line, validate=True)
            except ValueError:
                key = b""
            if len(key) != _KEY:
                raise SecretError(f"{self.where}: key {number} is not {_KEY} bytes in base64")
            keys[_id(key)] = key
        if not keys:
            raise SecretError(f"{self.where} has no master key in it; `eventrouter secrets init` makes one")
        return keys

    def _text(self) -> str:
        if not self.in_file:
            return self._environ[VARIABLE]
        try:
            with self.file.open(encoding="ascii") as file:
                found = os.fstat(file.fileno())
                if stat.S_IMODE(found.st_mode) & 0o077:
                    mode = stat.S_IMODE(found.st_mode)
                    raise SecretError(f"{self.file} can be read by others (mode {mode:04o}); run `chmod 600 {self.file}`")
                if found.st_uid not in (os.geteuid(), 0):
                    raise SecretError(f"{self.file} belongs to another user; make it yours with chown")
                return file.read()
        except FileNotFoundError:
            raise SecretError(f"there is no master key: {self.file} is missing; `eventrouter secrets init` makes one") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SecretError(f"{self.file} can't be read: {error}") from None


_DAMAGED: Final = "the encrypted value has been changed, or its master key has"


def _id(key: bytes) -> str:
    return hashlib.sha256(b"eventrouter master key" + key).hexdigest()[:16]


def _additional(context: Mapping[str, str]) -> bytes:
    return _encode([_PREFIX, *sorted(context.items())])


def _lock(key: bytes, plain: bytes, context: Mapping[str, str]) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - 0.1 s, and few need it

    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, _additional(context))


def _unlock(key: bytes, locked: bytes, context: Mapping[str, str]) -> bytes | None:
    """None: it isn't what was locked with this key in this context."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    with suppress(InvalidTag, ValueError):  # the latter for sizes that can't be
        return AESGCM(key).decrypt(locked[:_NONCE], locked[_NONCE:], _additional(context))
    return None


def _write(sealed: _Sealed) -> str:
    return _PREFIX + base64.urlsafe_b64encode(_encode(sealed)).decode().rstrip("=")


def _read(text: str) -> _Sealed:
    # Never with the text in the error: it may be the very value, not encrypted.
    if not isinstance(text, str) or _TEXT.fullmatch(text) is None:
        raise BadOption("Secret(...) takes what `eventrouter secrets encrypt` printed, not the value itself")
    try:
        data = text.removeprefix(_PREFIX)
        return _decode(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)))
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise BadOption(
            "Secret(...): a part of the encrypted value is missing; copy all of what `eventrouter secrets encrypt` printed"
        ) from None


def _understood(text: str) -> _Sealed:
    try:
        return _read(text)
    except BadOption:
        raise SecretError("it is no whole value that `eventrouter secrets encrypt` printed (`evr1:...`)") from None


def _whose(sealed: _Sealed) -> str:
    if not sealed.function:
        return "those that have it in their env"
    return f"function {sealed.function}" + (f", variable {sealed.variable}" if sealed.variable else "")


def _replace(file: Path, text: str, mode: int) -> None:
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as out:
            out.write(text)
            os.fchmod(descriptor, mode)
            out.flush()
            os.fsync(descriptor)
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    with _folder(file.parent) as folder:
        os.fsync(folder)


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of those that write keys there."""
    with _folder(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
