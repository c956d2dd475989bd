"""Encrypted configuration: who can decrypt what, keys and their rotation, and that no value is ever left anywhere."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter import App, Context, Plugin, Secret, on
from eventrouter.app import open_keys
from eventrouter.audit import Query, Who
from eventrouter.cli.common import Place as Commands
from eventrouter.config import load_config
from eventrouter.control import ControlServer
from eventrouter.errors import BadOption, ConfigError, EventRouterError, JournalError, NotRunning, SecretError
from eventrouter.journal.protocol import Ledger
from eventrouter.model import Failed, Succeeded
from eventrouter.operations import Operations, describe_function, perform
from eventrouter.plugins import Plugins
from eventrouter.secrets import VARIABLE, KeyRing, Vault, rewrap, rewrap_file, seal, unseal
from served import Place
from support import LOCAL, event, local, make_app, put, running, until

PLAIN = "correct-horse-battery-staple"


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    made = KeyRing(tmp_path / ".eventrouter" / "master.keys", {})
    made.create()
    return made


def test_what_is_encrypted_comes_back_and_is_never_the_same_twice(keys: KeyRing) -> None:
    for value in ("", "x", PLAIN, "äöü \n\0 😀", "y" * 65536):
        first, second = seal(keys, value), seal(keys, value)
        assert first != second
        assert value not in first or len(value) < 2
        assert unseal(keys, first) == unseal(keys, second) == value
    with pytest.raises(SecretError, match=r"has 65,537 bytes, 65,536 is the most"):
        seal(keys, "y" * 65537)
    with pytest.raises(SecretError, match="is no text"):
        seal(keys, "\ud800")


def test_every_changed_character_is_found(keys: KeyRing) -> None:
    text = seal(keys, PLAIN, "pay", "TOKEN")
    for place in range(len(text)):
        changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        try:
            assert base64.urlsafe_b64decode(changed[5:] + "==") == base64.urlsafe_b64decode(text[5:] + "=="), "bits past the end"
        except AssertionError:
            with pytest.raises(SecretError):
                unseal(keys, changed)
    for cut in range(len(text)):
        with pytest.raises(SecretError):
            unseal(keys, text[:cut])


def test_a_function_gets_what_is_its_own(keys: KeyRing) -> None:
    vault = Vault(keys)
    mine, bound, free = seal(keys, "1", "pay", "TOKEN"), seal(keys, "2", "pay"), seal(keys, "3")
    env = {"TOKEN": Secret(mine), "SHARED": Secret(free), "PLAIN": "x"}
    assert [vault.decrypt("pay", env, text) for text in (mine, bound, free)] == ["1", "2", "3"]
    for function, held, text, whose in (
        ("other", env, mine, "function pay, variable TOKEN"),
        ("other", env, bound, "function pay"),
        ("other", {}, free, "those that have it in their env"),
        ("pay", {}, mine, "function pay, variable TOKEN, and is not there"),
        ("pay", {"OTHER": Secret(mine)}, mine, "function pay, variable TOKEN, and is not there"),
        ("pay", {"TOKEN": mine}, mine, "function pay, variable TOKEN, and is not there"),  # a text that nobody checked
    ):
        with pytest.raises(SecretError, match=f"^{function} can't decrypt what is encrypted for {whose}$"):
            vault.decrypt(function, held, text)


def test_rotation_keeps_old_values_readable_until_their_key_is_removed(keys: KeyRing, tmp_path: Path) -> None:
    old = seal(keys, PLAIN)
    before = keys.ids()
    new = keys.rotate()
    assert keys.ids() == [new, *before]
    assert unseal(keys, old) == PLAIN
    moved = rewrap(keys, old)
    config = tmp_path / "app.toml"
    config.write_text(f'# one\r\na = "{old}"\r\nb = "{moved}" # and "{seal(keys, "z")}"\r\n')
    config.chmod(0o640)
    assert rewrap_file(keys, config) == 3
    keys.file.write_text(keys.file.read_text().splitlines()[0])
    after = config.read_bytes().decode()
    assert after.count("\r\n") == 3
    assert config.stat().st_mode & 0o777 == 0o640
    assert [unseal(keys, text) for text in after.split('"')[1::2]] == [PLAIN, PLAIN, "z"]
    assert unseal(keys, moved) == PLAIN
    with pytest.raises(SecretError, match=rf"master key '{before[0]}' is not in .*master.keys; put it back there"):
        unseal(keys, old)
    config.write_text(f"\n{moved}\n{old}\n")
    with pytest.raises(SecretError, match=rf"app.toml:3: master key '{before[0]}'.*; nothing was changed"):
        rewrap_file(keys, config)
    assert config.read_text() == f"\n{moved}\n{old}\n"
    assert sorted(path.name for path in keys.file.parent.iterdir()) == ["master.keys"]


def test_key_files_that_are_no_good(keys: KeyRing) -> None:
    file = keys.file
    assert file.stat().st_mode & 0o777 == 0o600
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(SecretError, match=rf"can be read by others \(mode 0{mode:o}\); run `chmod 600 .*master.keys`"):
            keys.ids()
    file.chmod(0o600)
    for text, fault in (
        ("", "has no master key in it"),
        ("abc", "key 1 is not 32 bytes"),
        (file.read_text() + "AAAA", "key 2 is not 32"),
        ("ü", "can't be read"),
    ):
        file.write_text(text)
        with pytest.raises(SecretError, match=fault):
            keys.ids()
    file.unlink()
    with pytest.raises(SecretError, match=r"master.keys is missing; `eventrouter secrets init` makes one"):
        keys.ids()
    if os.geteuid() == 0:
        keys.create()
        os.chown(file, 12345, 12345)
        with pytest.raises(SecretError, match="belongs to another user"):
            keys.ids()


def test_keys_in_the_environment(tmp_path: Path) -> None:
    one, two = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    old, ring = KeyRing(tmp_path / "no", {VARIABLE: one}), KeyRing(tmp_path / "no", {VARIABLE: f"{two} {one}"})
    assert unseal(ring, seal(old, PLAIN)) == PLAIN
    with pytest.raises(SecretError, match="is not in EVENTROUTER_MASTER_KEY"):
        unseal(old, seal(ring, PLAIN))
    for change in (ring.create, ring.rotate):
        with pytest.raises(SecretError, match="put a new one before them there"):
            change()
    assert not list(tmp_path.iterdir())


class Service:
    """A plugin's key service, which tells keys apart by what they are bound to."""

    def __init__(self, config: object) -> None:
        self.kept: dict[bytes, tuple[bytes, dict[str, str]]] = {}

    def wrap(self, key: bytes, context: Mapping[str, str]) -> tuple[str, bytes]:
        self.kept[name := os.urandom(4)] = (key, dict(context))
        return "theirs", name

    def unwrap(self, id: str, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        key, bound = self.kept.get(wrapped, (b"", {}))
        if id != "theirs" or bound != context:
            raise EventRouterError("the service says no")
        return key


def test_a_plugin_keeps_the_keys(tmp_path: Path) -> None:
    plugins = Plugins([LOCAL, Plugin(name="vault", keys=Service)])
    (tmp_path / "eventrouter.toml").write_text('[secrets]\nprovider = "vault"\n')
    keys = open_keys(load_config(plugins.by_name, folder=tmp_path), plugins)
    assert isinstance(keys, Service)
    text = seal(keys, PLAIN, "f")
    assert unseal(keys, text) == unseal(keys, rewrap(keys, text)) == PLAIN
    keys.kept.clear()
    with pytest.raises(EventRouterError, match="says no"):
        unseal(keys, text)
    (tmp_path / "eventrouter.toml").write_text('[secrets]\nprovider = "valt"\n')
    with pytest.raises(ConfigError, match=r"no plugin 'valt' keeps keys; did you mean 'vault'\?"):
        open_keys(load_config(plugins.by_name, folder=tmp_path), plugins)


def test_a_secret_shows_nothing(keys: KeyRing) -> None:
    secret = Secret(seal(keys, PLAIN, "f", "TOKEN"))
    assert {repr(secret), str(secret), f"{secret}"} == {"Secret(...)"}
    for wrong in (PLAIN, "", "evr1:", "evr1:AAAA", f"{secret.secret} "):
        with pytest.raises(BadOption) as raised:
            Secret(wrong)
        assert PLAIN not in str(raised.value)
    for option in ({"TOKEN": {"secret": PLAIN}}, {"TOKEN": {"secrt": PLAIN}}, {"TOKEN": 5, "B": PLAIN}):
        with pytest.raises(ConfigError, match=": env: ") as refused:
            on(env=option)  # type: ignore[arg-type]
        assert PLAIN not in str(refused.value)


def test_a_secret_in_the_wrong_place_is_an_error_at_load(keys: KeyRing, tmp_path: Path) -> None:
    for function, variable in (("other", "TOKEN"), ("handler", "OTHER")):

        @on(local("a"), env={"TOKEN": Secret(seal(keys, PLAIN, function, variable))})
        async def handler() -> None: ...

        with pytest.raises(
            ConfigError, match=rf"handler: env TOKEN: its secret was encrypted for function {function}, variable {variable}; "
        ):
            make_app(tmp_path, handler)


async def test_a_secret_that_can_not_be_decrypted_is_an_error_at_start(keys: KeyRing, tmp_path: Path) -> None:
    @on(local("a"), env={"TOKEN": Secret(seal(keys, PLAIN))})
    async def handler() -> None: ...

    keys.file.unlink()
    app = make_app(tmp_path, handler)
    with pytest.raises(ConfigError, match="handler: env TOKEN: there is no master key"):
        await app.start()


async def test_handlers_decrypt(keys: KeyRing, tmp_path: Path) -> None:
    token, other = Secret(seal(keys, PLAIN, "typed", "TOKEN")), Secret(seal(keys, "theirs", "lambda_style"))
    got: list[str] = []

    @on(local("a"), env={"TOKEN": token, "COLOUR": "red"})
    async def typed(context: Context) -> str:
        assert context.env == {"TOKEN": token.secret, "COLOUR": "red"}
        got.append(context.decrypt(context.env["TOKEN"]))
        return context.env["COLOUR"]

    @on(local("b"), env={"OTHER": other})
    def lambda_style(event, context):  # type: ignore[no-untyped-def]
        return context.decrypt(context.env["OTHER"])

    @on(local("c"), retries=0)
    async def thief(context: Context) -> str:
        return context.decrypt(token.secret)

    async with running(tmp_path, typed, lambda_style, thief) as app:
        await put(app, "a")
        await until(lambda: got == [PLAIN])
        assert await app.run_now("lambda_style", event("b"), {}) == Succeeded("theirs")
        failed = await app.run_now("thief", event("c"), {})
        assert isinstance(failed, Failed)
        assert (failed.error_type, failed.error_message) == (
            "SecretError", "thief can't decrypt what is encrypted for function typed, variable TOKEN",
        )  # fmt: skip
        keys.rotate()
        await put(app, "a")
        await until(lambda: got == [PLAIN, PLAIN])
        shown = json.dumps([await Operations(app).functions(), describe_function(app.functions["typed"])])
        assert PLAIN not in shown
        assert token.secret not in shown
    with pytest.raises(NotRunning):
        Context("f", "id", 0, lambda: 0.0).decrypt(token.secret)


@given(
    st.text()
    | st.text("evr1:AbC_-9", max_size=200).map("evr1:".__add__)
    | st.binary(max_size=300).map(lambda data: "evr1:" + base64.urlsafe_b64encode(data).decode().rstrip("="))
)
def test_garbage_is_refused(text: str) -> None:
    ring = KeyRing(Path("none"), {VARIABLE: base64.b64encode(bytes(32)).decode()})
    with pytest.raises(SecretError):
        unseal(ring, text)


APP = """
import os
from eventrouter import Secret, on
from eventrouter_http import http

TOKEN = Secret("{token}")

@on(http("GET /inline"), env={{"TOKEN": TOKEN}}, name="inline")
async def inline(event, context):
    return str(len(context.decrypt(context.env["TOKEN"])))

@on(http("POST /later", mode="event"), env={{"TOKEN": TOKEN}}, retries=0)
def later(event, context):
    value = context.decrypt(context.env["TOKEN"])
    raise ValueError(f"{{len(value)}} characters")

@on(http("GET /fault"), env={{"TOKEN": TOKEN}})
async def fault(event, context):
    value = context.decrypt(context.env["TOKEN"])
    {{}}[len(value)]

@on(http("GET /other"), isolation="process")
def other(event, context):
    return open("/proc/self/environ").read() + repr(dict(os.environ))

@on(http("GET /crash"), env={{"TOKEN": TOKEN}})
async def crash(event, context):
    value = context.decrypt(context.env["TOKEN"])
    os.abort()
"""


@pytest.fixture
def cores() -> Iterator[None]:
    """Let crashes dump cores, as far as this machine lets us."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def test_nothing_that_is_written_has_the_value(tmp_path: Path, cores: None) -> None:
    with Place(tmp_path) as place:
        (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n[journal]\nhistory = '1h'\narchive = '1h'\n")
        assert "there is no master key" in place.run("secrets", "encrypt", input=PLAIN, code=1)
        assert "keep a copy" in place.run("secrets", "init")
        token = place.run("secrets", "encrypt", input=PLAIN + "\n").strip()
        (tmp_path / "app.py").write_text(APP.format(token=token))
        printed = place.serve()
        router = place.router
        assert router is not None
        assert place.curl("/inline") == str(len(PLAIN))
        assert "500" in place.curl("/fault", "-i")
        place.curl("/later", "-d", "x")
        place.says("dead letter")
        environ = place.curl("/other")
        assert "AWS_LAMBDA_FUNCTION_NAME" in environ
        assert (PLAIN in environ, token in environ) == (False, False)
        for words in (["list", "--json"], ["show", "inline"], ["show", "inline", "--json"], ["dlq", "list", "--json"], ["doctor"]):
            printed += place.result(*words).stdout
        printed += place.run("secrets", "rotate", "--rewrap", "app.py")
        assert place.run("secrets", "decrypt", token) == PLAIN + "\n"
        assert place.curl("/inline") == str(len(PLAIN))
        for process in Path("/proc").glob("[0-9]*"):
            try:
                assert PLAIN.encode() not in (process / "environ").read_bytes(), process
            except OSError:
                continue
        place.curl("/crash", check=False)
        assert router.wait(20) < 0
        printed += place.output
        assert PLAIN not in printed
    found = [path for path in tmp_path.rglob("*") if path.is_file() and PLAIN.encode() in path.read_bytes()]
    assert found == []
    assert (tmp_path / ".eventrouter" / "journal.db").stat().st_size > 0
    assert token not in (tmp_path / "app.py").read_text()


def test_the_command_line(tmp_path: Path) -> None:
    with Place(tmp_path) as place:
        place.run("secrets", "init")
        assert "is there already" in place.run("secrets", "init", code=1)
        (tmp_path / "plain.txt").write_text("from a file\n")
        for words, value in ((["x y"], "x y"), (["@plain.txt"], "from a file"), (["-"], "typed")):
            text = place.run("secrets", "encrypt", *words, "--function", "f", "--variable", "V", input="typed\r\n").strip()
            for given in ([text], ["-"]):
                done = place.result("secrets", "decrypt", *given, input=text + "\n")
                assert (done.stdout, done.stderr) == (value + "\n", "")
        assert "give --function, too" in place.run("secrets", "encrypt", "x", "--variable", "V", code=2)
        assert "no whole value" in place.run("secrets", "decrypt", "x", code=1)
        (tmp_path / "eventrouter.toml").write_text('[secrets]\nkey_file = "elsewhere/ring"\n')
        assert "elsewhere/ring" in place.run("secrets", "init")
        assert (tmp_path / "elsewhere/ring").stat().st_mode & 0o777 == 0o600
        environ = {**os.environ, VARIABLE: base64.b64encode(bytes(32)).decode()}
        command = [sys.executable, "-m", "eventrouter", "secrets"]

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*command, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)

        (tmp_path / "values.toml").write_text(f'a = "{run("encrypt", "v").stdout.strip()}"')
        assert run("rotate").returncode == 1
        assert "values.toml: 1 values use it" in run("rotate", "--rewrap", "values.toml").stdout


async def test_in_a_config_file(keys: KeyRing, tmp_path: Path) -> None:
    @on(local("a"))
    async def handler(context: Context) -> str:
        return context.decrypt(context.env["TOKEN"])

    text = seal(keys, PLAIN, "handler", "TOKEN")
    async with running(tmp_path, handler, toml=f'[functions.handler]\nenv.TOKEN = {{ secret = "{text}" }}\n') as app:
        assert isinstance(app, App)
        assert await app.run_now("handler", event("a"), {}) == Succeeded(PLAIN)


ISOLATED = """
from eventrouter import on

@on(isolation="process")
def waits(event, context):
    return context.decrypt(context.env["TOKEN"])

@on(isolation="process")
async def awaits(event, context):
    return context.decrypt(context.env["TOKEN"])

@on(isolation="process", role="none")
def denied(event, context):
    return context.decrypt(context.env["TOKEN"])

@on(isolation="process")
def thief(event, context):
    return context.decrypt(event["token"])
"""


async def test_functions_in_processes_decrypt_as_their_roles_allow(keys: KeyRing, tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text(ISOLATED)
    own = {name: seal(keys, PLAIN, name, "TOKEN") for name in ("waits", "awaits", "denied")}
    file = tmp_path / "eventrouter.toml"
    file.write_text("".join(f'[functions.{name}]\nenv.TOKEN = {{ secret = "{text}" }}\n' for name, text in own.items()))
    plugins = Plugins([LOCAL])
    async with App(str(tmp_path / "handlers.py"), config=load_config(plugins.by_name, file=file), plugins=plugins) as app:
        for name in ("waits", "awaits"):
            assert await app.run_now(name, event("a"), {}) == Succeeded(PLAIN)
        failed = await app.run_now("denied", event("a"), {})
        assert isinstance(failed, Failed)
        assert failed.error_type == "AccessDenied"
        assert (
            'is not authorized to perform: kms:Decrypt on resource: "arn:aws:kms:local:000000000000:key/eventrouter"'
            in failed.error_message
        )
        failed = await app.run_now("thief", event("a", {"token": own["waits"]}), {})
        assert isinstance(failed, Failed)
        assert (failed.error_type, failed.error_message) == (
            "SecretError", "thief can't decrypt what is encrypted for function waits, variable TOKEN",
        )  # fmt: skip


# Each act is recorded


def acts(place: Place) -> list[tuple[str, Any, str]]:
    """Of the audit log: what was done with secrets, about what, and what came of it."""
    found = [record for record in json.loads(place.run("audit", "query", "--json")) if record["eventName"].startswith("Secrets")]
    assert {record["userIdentity"]["userName"] for record in found} <= {Who.me().name}
    for record in found:
        assert re.fullmatch(r"eventrouter \(pid \d+\)", record["userAgent"])
    return [(record["eventName"], record["requestParameters"], record.get("errorCode", "")) for record in found]


@pytest.mark.parametrize("served", [False, True])
def test_what_is_done_with_secrets_is_in_the_audit_log_and_no_value_is(tmp_path: Path, served: bool) -> None:
    (tmp_path / "app.py").write_text("from eventrouter import on\n\n@on()\nasync def f() -> None: ...\n")
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        if served:
            place.serve()
        place.run("secrets", "init")
        for_pay = place.run("secrets", "encrypt", "--function", "pay", "--variable", "TOKEN", input=PLAIN).strip()
        for_all = place.run("secrets", "encrypt", PLAIN).strip()
        (tmp_path / "values.toml").write_text(f'a = "{for_pay}"\nb = "{for_all}"\n')
        assert "values.toml: 2 values use it" in place.run("secrets", "rotate", "--rewrap", "values.toml")
        assert place.run("secrets", "decrypt", for_pay) == PLAIN + "\n"
        ring = tmp_path / ".eventrouter" / "master.keys"
        ring.write_text(base64.b64encode(bytes(32)).decode())
        assert "put it back there" in place.run("secrets", "decrypt", for_all, code=1)
        whose = {"function": "pay", "variable": "TOKEN"}
        assert acts(place) == [
            ("SecretsInit", {"keys": str(ring)}, ""),
            ("SecretsEncrypt", whose, ""),
            ("SecretsEncrypt", {"function": "", "variable": ""}, ""),
            ("SecretsRotate", {"keys": str(ring), "files": [str(tmp_path / "values.toml")]}, ""),
            ("SecretsDecrypt", whose, ""),
            ("SecretsDecrypt", {"function": "", "variable": ""}, "SecretError"),
        ]
        assert "SecretsDecrypt" in place.run("audit", "query", "--function", "pay")
        assert place.run("audit", "verify").startswith("whole: ")
        if served:
            assert place.stop() == 0
    for path in (tmp_path / ".eventrouter").rglob("*"):
        assert not path.is_file() or PLAIN.encode() not in path.read_bytes(), path


def test_an_act_with_secrets_is_on_disk_before_it_is_done(keys: KeyRing, tmp_path: Path) -> None:
    data = tmp_path / ".eventrouter"

    def recorded() -> list[bytes]:
        with apsw.Connection(str(data / "journal.db")) as db:
            return [line for (rows,) in db.execute("SELECT records FROM audit ORDER BY first") for line in rows.splitlines()]

    place = Commands(None, str(data))
    with place.recorded("secrets_encrypt", function="f", variable=""):
        (begun,) = recorded()
        assert b'"secrets_encrypt",{"function":"f","variable":""}' in begun
    with pytest.raises(ZeroDivisionError), place.recorded("secrets_rotate", keys="k", files=[]):
        raise ZeroDivisionError(PLAIN)
    assert [json.loads(record)[3:] for record in recorded() if record.startswith(b'["e"')] == [
        [None, "", ""],
        [None, "ZeroDivisionError", ""],
    ]


def test_an_act_with_secrets_that_cant_be_recorded_is_not_done(tmp_path: Path) -> None:
    with Place(tmp_path) as place:
        place.run("secrets", "init")
        ring, seals = tmp_path / ".eventrouter" / "master.keys", tmp_path / ".eventrouter" / "audit" / "key"
        before = ring.read_bytes()
        value = place.run("secrets", "encrypt", PLAIN).strip()
        seals.chmod(0o644)
        for words in (["rotate"], ["encrypt", PLAIN], ["decrypt", value]):
            said = place.run("secrets", *words, code=1)
            assert f"secrets {words[0]} was not done, as it can't be recorded in the audit log: " in said
            assert "`chmod 600 " in said
            assert (PLAIN in said, "evr1:" in said) == (False, False)
        assert ring.read_bytes() == before
        (tmp_path / "file").touch()
        said = place.run("secrets", "init", "--data", "file", code=1)
        assert "file can't be written (File exists); mend that, or give --data another folder" in said


async def test_a_running_router_that_cant_record_an_act_with_secrets_keeps_it_from_being_done(
    keys: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @on()
    async def f() -> None: ...

    def fails(ledger: Ledger) -> asyncio.Future[None]:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(JournalError("the disk is full"))
        return failed

    before = keys.file.read_bytes()
    async with running(tmp_path, f) as app, ControlServer(Operations(app), app.config.data):
        with monkeypatch.context() as patch:
            patch.setattr(app.journal.books, "enter", fails)
            said = await asyncio.to_thread(Place(tmp_path).run, "secrets", "rotate", code=1)
        assert "secrets rotate was not done, as it can't be recorded in the audit log: the disk is full" in said
        assert keys.file.read_bytes() == before
        # Nor can a record be given an end that it hasn't come to.
        id = await perform(Operations(app), "secrets_rotate", {"keys": "", "files": []}, Who.me())
        with pytest.raises(EventRouterError, match=f"no act {id} is under way"):
            await perform(Operations(app), "ended", {"id": id, "error": "", "message": ""}, Who.me())


def test_commands_wait_for_each_other_where_no_router_runs(tmp_path: Path) -> None:
    with Place(tmp_path) as place:
        place.run("secrets", "init")
        with ThreadPoolExecutor(4) as pool:
            assert len({*pool.map(lambda _: place.run("secrets", "encrypt", "x"), range(4))}) == 4
        (tmp_path / "app.py").write_text("from eventrouter import on\n\n@on()\nasync def f() -> None: ...\n")
        assert [name for name, _, _ in acts(place)] == ["SecretsInit", *["SecretsEncrypt"] * 4]


async def test_who_does_something_with_secrets_is_told_when_the_router_goes_before_its_end_is_recorded(
    keys: KeyRing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @on()
    async def f() -> None: ...

    act = ExitStack()
    async with running(tmp_path, f) as app:
        async with ControlServer(Operations(app), app.config.data):
            rotating = Commands(None, str(app.config.data)).recorded("secrets_rotate", keys="", files=[])
            await asyncio.to_thread(act.enter_context, rotating)
        await asyncio.to_thread(act.close)
        (_, record) = await app.trail.query(Query())
    assert (record["eventName"], record["responseElements"]) == ("SecretsRotate", None)
    assert "what came of it is not in the audit log: no router is running on" in capsys.readouterr().err
