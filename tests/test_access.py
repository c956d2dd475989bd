"""Roles bound what functions do with their clients; function policies say who starts them."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Batch, Role, allow, deny, invoke, on, permissions
from eventrouter.cli import run
from eventrouter.config import load_config
from eventrouter.errors import AccessDenied, ConfigError
from eventrouter.invoking import InvokeError
from eventrouter.operations import Operations
from eventrouter.plugins import load_plugins
from eventrouter_http import http
from eventrouter_s3 import Bucket
from eventrouter_sqs import Queue, sqs
from reach import ARNS, Step, needs
from served import Place
from support import local, make_app, module, put, until

INVOKE = "lambda:InvokeFunction"


@asynccontextmanager
async def real(folder: Path, *functions: Callable[..., Any], toml: str = "") -> AsyncIterator[App]:
    """An app of these functions, or of reach.py, with every plugin, and what they can reach."""
    plugins = load_plugins()
    file = folder / "eventrouter.toml"
    file.write_text('[http]\nport = 0\n[tables]\ndatabase = "sqlite:///shop.db"\n' + toml)
    with sqlite3.connect(folder / "shop.db") as db:
        db.executescript("CREATE TABLE IF NOT EXISTS orders (id PRIMARY KEY, n); CREATE TABLE IF NOT EXISTS secrets (id PRIMARY KEY, n)")
    db.close()
    config = load_config(plugins.by_name, file=file)
    apps: list[Any] = [module(*functions)] if functions else [str(Path(__file__).with_name("reach.py"))]
    async with App(*apps, config=config, plugins=plugins) as app:
        yield app


async def invoked(app: App, function: str, payload: Any) -> Any:
    answer = await Operations(app).invoke(function, json.dumps(payload), {})
    assert answer["status"] == "succeeded", answer
    return answer["result"]


# What a function may do


READER = Role("reader", allow("s3:GetObject", "arn:aws:s3:::in/*"), deny("s3:*", "arn:aws:s3:::in/secret/*"))


async def test_a_denied_call_says_who_may_not_do_what_and_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @on(role=READER)
    async def ingest(key: str) -> str:
        return (await Bucket("in").read(key)).decode()

    async with real(tmp_path, ingest) as app:
        await Bucket("in").write("a", "text")  # outside of handlers nobody is asked
        await Bucket("in").write("secret/a", "secret")
        assert (await Operations(app).invoke("ingest", "a", {}))["result"] == "text"
        who = "User: arn:aws:sts::000000000000:assumed-role/reader/ingest is not authorized to perform: s3:GetObject on resource: "
        answer = await Operations(app).invoke("ingest", "secret/a", {})
        assert answer["error"]["errorType"] == "AccessDenied"
        assert answer["error"]["errorMessage"] == f'{who}"arn:aws:s3:::in/secret/a" with an explicit deny in an identity-based policy'
        assert (await Operations(app).status())["functions"]["ingest"]["denied"] == 1
        assert [record.action for record in caplog.records if hasattr(record, "action")].count("permission.denied") == 1
        assert "(Statement[1])" in caplog.text


async def test_what_is_not_allowed_is_told_so(tmp_path: Path) -> None:
    @on(role=READER)
    async def ingest() -> None:
        await Queue("q").send("x")

    async with real(tmp_path, ingest) as app:
        said = (await Operations(app).invoke("ingest", "null", {}))["error"]["errorMessage"]
        assert ' to perform: sqs:SendMessage on resource: "arn:aws:sqs:local:000000000000:q" because no ' in said
        assert said.endswith("because no identity-based policy allows the sqs:SendMessage action")
        assert (await Queue("q").depth()).available == 0


@pytest.mark.parametrize("kind", ["batch", "thread", "queue", "dependency"])
async def test_every_kind_of_function_is_known(tmp_path: Path, kind: str) -> None:
    seen: list[str] = []

    async def attempt() -> None:
        try:
            await Bucket("in").write("x", "x")
        except AccessDenied as error:
            seen.append(str(error).partition(" is not")[0])

    if kind == "batch":

        @on(local("a"), role=READER, batch=Batch(2))
        async def f(payloads: list[int]) -> None:
            await attempt()

    elif kind == "thread":

        @on(local("a"), role=READER, isolation="thread")  # type: ignore[no-redef]
        def f(payload: int) -> None:
            try:
                Bucket("in").sync.write("x", "x")
            except AccessDenied as error:
                seen.append(str(error).partition(" is not")[0])

    elif kind == "queue":

        @on(sqs("jobs"), role=READER)  # type: ignore[no-redef]
        async def f(payload: int) -> None:
            await attempt()

    else:
        from typing import Annotated

        from eventrouter import Depends

        @on(local("a"), role=READER)  # type: ignore[no-redef]
        async def f(payload: int, done: Annotated[None, Depends(attempt)]) -> None: ...

        f.__annotations__["done"] = Annotated[None, Depends(attempt)]

    if kind == "queue":
        async with real(tmp_path, f):
            await Queue("jobs").send(1)
            await until(lambda: seen)
    else:
        from eventrouter.plugins import Plugins
        from support import LOCAL

        plugins = Plugins([LOCAL, *(plugin for name, plugin in load_plugins().by_name.items() if name == "s3")])
        async with make_app(tmp_path, f, plugins=plugins) as app:
            await put(app, "a", 1)
            await until(lambda: seen)
    assert seen[0] == "User: arn:aws:sts::000000000000:assumed-role/reader/f"


async def test_a_function_that_is_invoked_has_its_own_rights_and_its_caller_keeps_his(tmp_path: Path) -> None:
    @on(role=Role("outer", allow(INVOKE, ARNS["invoke"] + "inner")))
    async def outer() -> list[str]:
        said = [await invoke("inner")]
        try:
            await Queue("q").send("x")
        except AccessDenied:
            said.append("denied")
        return said

    @on(role=Role("inner", allow("sqs:SendMessage", "*")))
    async def inner() -> str:
        await Queue("q").send("x")
        try:
            await invoke("outer")
        except AccessDenied:
            return "may send, may not invoke"
        return ""

    async with real(tmp_path, outer, inner) as app:
        assert await invoked(app, "outer", None) == ["may send, may not invoke", "denied"]


async def test_a_statement_of_the_function_policy_is_enough_to_invoke_and_a_deny_there_is_obeyed(tmp_path: Path) -> None:
    @on(role="none")
    async def caller() -> Any:
        return await invoke("target")

    @on()
    async def anyone() -> Any:
        return await invoke("target")

    @on()
    async def target() -> int:
        return 7

    async with real(tmp_path, caller, anyone, target) as app:
        do = Operations(app)
        assert "no identity-based policy" in (await do.invoke("caller", "null", {}))["error"]["errorMessage"]
        assert await invoked(app, "anyone", None) == 7
        await do.add_permission("target", "caller", INVOKE, "", "let")
        assert await invoked(app, "caller", None) == 7
        assert (await do.simulate("target", "", "", {}, "caller"))["statement"]["Sid"] == "let"
        await do.add_permission("target", "anyone", INVOKE, "", "no", "Deny")
        refused = (await do.invoke("anyone", "null", {}))["error"]["errorMessage"]
        assert "assumed-role/unrestricted/anyone is not authorized" in refused
        assert "with an explicit deny in a resource-based policy" in refused
        assert await invoked(app, "caller", None) == 7
        await do.remove_permission("target", "let")
        assert (await do.invoke("caller", "null", {}))["status"] == "failed"
        with pytest.raises(InvokeError):  # outside of handlers: it runs, and fails by itself
            await invoke("caller")


async def test_default_role(tmp_path: Path) -> None:
    @on()
    async def f() -> None:
        await Queue("q").send("x")

    @on(role=Role("sender", allow("sqs:*", "*")))
    async def g() -> None:
        await Queue("q").send("x")

    toml = '[app]\ndefault_role = "none"\n[[sns.subscriptions]]\ntopic = "t"\nendpoint = "sqs:q"\n'
    async with real(tmp_path, f, g, toml=toml) as app:
        do = Operations(app)
        assert (await do.invoke("f", "null", {}))["error"]["errorType"] == "AccessDenied"
        assert (await do.invoke("g", "null", {}))["status"] == "succeeded"
        assert (await do.permissions("f"))["may"]["role"] == "none"
        assert await do.send("sns", ["t", "x"], {}, ".")  # what a plugin does of its own is not a user's function
        await until(lambda: app.engine.lanes["sns t to sqs:q"].succeeded if "sns t to sqs:q" in app.engine.lanes else True)


@pytest.mark.parametrize("what", ["dlq", "on_success", "on_failure"])
@pytest.mark.parametrize(
    ("target", "right"),
    [
        ("sqs:dead", allow("sqs:SendMessage", ARNS["queue"] + "dead")),
        ("sns:dead", allow("sns:Publish", ARNS["topic"] + "dead")),
        ("events:dead", allow("events:PutEvents", ARNS["bus"] + "dead")),
        ("lambda:other", allow(INVOKE, ARNS["invoke"] + "other")),
    ],
)
async def test_a_role_must_let_it_send_to_its_destinations(tmp_path: Path, what: str, target: str, right: Any) -> None:
    @on()
    async def other() -> None: ...

    def app(role: Role) -> App:
        @on(role=role, **{what: target})  # type: ignore[arg-type]
        async def f() -> None: ...

        return App(module(f, other), config=load_config(plugins.by_name, folder=tmp_path), plugins=plugins)

    plugins = load_plugins()
    app(Role("r", right))
    with pytest.raises(ConfigError) as caught:
        app(READER)
    assert (
        f'f: {what}={target!r}: role \'reader\' does not let it send there; add allow("{right["Action"]}", "{right["Resource"]}")'
        in str(caught.value)
    )


# Nothing is reached that `simulate` calls denied

PATTERNS = [
    "*", "arn:aws:s3:::in/*", "arn:aws:s3:::in", "arn:aws:s3:::in/secret/*", "arn:aws:s3:::*",
    "arn:aws:sqs:*:*:*", f"{ARNS['queue']}a", f"{ARNS['queue']}b", f"{ARNS['topic']}*", f"{ARNS['bus']}default", f"{ARNS['bus']}hidden",
    f"{ARNS['table']}orders", f"{ARNS['table']}*", f"{ARNS['table']}secrets", f"{ARNS['invoke']}other", f"{ARNS['invoke']}*",
]  # fmt: skip
VERBS = [
    "*",
    "s3:*",
    "s3:GetObject",
    "s3:Put*",
    "sqs:*",
    "sqs:SendMessage",
    "sns:*",
    "events:*",
    "dynamodb:*",
    "dynamodb:*Item",
    "lambda:*",
]
ENTRY = {"Source": "s", "DetailType": "d", "Detail": "{}"}
FORGED = {
    "id": "x",
    "body": "",
    "attributes": {},
    "receives": 1,
    "sent": 0,
    "receipt": "a/00000000-0000-4000-8000-000000000001/0",
    "system": {},
}
KEYS = ["a", "secret/a", "secret//a", "public/../secret/a", "./secret/a", "*"]
CALLS: list[tuple[str, str, str, list[Any]]] = [
    *(("bucket", "in", method, [key]) for method in ("read", "delete") for key in KEYS),
    *(("bucket", name, "write", [key, "x"]) for name in ("in", "out") for key in KEYS),
    ("bucket", "in", "list", ["secret/"]),
    *(("queue", name, "send", ["x"]) for name in ("a", "b")),
    *(("queue", name, method, []) for name in ("a", "b") for method in ("receive", "depth", "attributes", "purge")),
    ("queue", "a", "send_many", [["x", "y"]]),
    ("queue", "a", "delete", [FORGED]),
    ("queue", "a", "change_visibility", [FORGED, 0]),
    *(("topic", name, "publish", ["x"]) for name in ("t", "u")),
    *(("bus", name, "put", ["d", {}]) for name in ("default", "hidden")),
    *(("bus", "default", "put_events", [[ENTRY, ENTRY | {"EventBusName": name}]]) for name in ("", "hidden", f"{ARNS['bus']}hidden")),
    *(("table", name, method, [1]) for name in ("orders", "secrets", "SECRETS", "main.secrets") for method in ("get", "delete")),
    *(("table", name, method, [{"id": 1, "n": 2}]) for name in ("orders", "secrets", "Secrets") for method in ("put", "query")),
    *(("invoke", name, "", [None]) for name in ("other", "hidden", "nobody")),
]  # fmt: skip


def made_up_role(rng: random.Random) -> dict[str, Any]:
    statements = [
        {"Effect": effect, "Action": rng.sample(VERBS, rng.randint(1, 2)), "Resource": rng.sample(PATTERNS, rng.randint(1, 3))}
        for effect in rng.choices(["Allow", "Allow", "Deny"], k=rng.randint(1, 4))
    ]
    return {"Version": "2012-10-17", "Statement": statements}


async def state(app: App, folder: Path) -> dict[str, Any]:
    """What is in everything that can be written to, by the ARN of what it would take a right for."""
    found: dict[str, Any] = {}
    for bucket in ("in", "out"):
        for file in (folder / "buckets" / bucket).rglob("*"):
            if file.is_file():
                found[f"arn:aws:s3:::{bucket}/{file.relative_to(folder / 'buckets' / bucket)}"] = file.read_bytes()
    for queue in ("a", "b"):
        found[ARNS["queue"] + queue] = await app.journal.queue_depth(f"sqs:{queue}")
    db = sqlite3.connect(folder / "shop.db")
    for table in ("orders", "secrets"):
        found[ARNS["table"] + table] = db.execute(f"SELECT * FROM {table}").fetchall()
    db.close()
    for function in ("other", "hidden"):
        found[ARNS["invoke"] + function] = app.engine.lanes[function].succeeded
    return found


WRITES = ("s3:PutObject", "s3:DeleteObject", "sqs:SendMessage", "sqs:ReceiveMessage", "sqs:PurgeQueue", "sqs:DeleteMessage",
          "sqs:ChangeMessageVisibility", "dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem", INVOKE)  # fmt: skip


@pytest.mark.parametrize("function", ["inline", "process"])
@pytest.mark.parametrize("seed", range(4))
async def test_no_sequence_of_calls_reaches_what_simulate_calls_denied(tmp_path: Path, function: str, seed: int) -> None:
    rng = random.Random(seed)
    role = made_up_role(rng)
    toml = f"[functions.{function}]\nrole = {as_toml(role)}\n"
    async with real(tmp_path, toml=toml) as app:
        for bucket in ("in", "out"):
            for key in ("a", "secret/a"):
                await Bucket(bucket).write(key, "before")
        await Queue("a").send("before")
        await Queue("b").send("before")
        do, count = Operations(app), {"done": 0, "AccessDenied": 0}
        before = await state(app, tmp_path)
        steps: list[Step] = [(rng.choice(["await", "task", "gather", "later", "thread"]), *rng.choice(CALLS)) for _ in range(120)]
        for step, answer in zip(steps, await invoked(app, function, steps), strict=True):
            decisions = [(await do.simulate(function, *need, {}))["decision"] for need in needs(step)]
            allowed = all(decision == "allowed" for decision in decisions)
            assert (answer != "AccessDenied") == allowed or (answer == "ValueError" and not allowed), (step, answer, decisions, role)
            count[answer] = count.get(answer, 0) + 1
        for resource, now in (await state(app, tmp_path)).items():
            if now != before.get(resource):
                may = [(await do.simulate(function, action, resource, {}))["decision"] for action in WRITES]
                assert "allowed" in may, (resource, role)
        assert app.engine.lanes[function].denied == count["AccessDenied"]
        assert count["AccessDenied"]


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(map(as_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


async def test_a_message_of_another_queue_cant_be_ended_by_a_forged_receipt(tmp_path: Path) -> None:
    async with real(tmp_path) as app:
        await Queue("b").send("mine")
        (message,) = await Queue("b").receive()
        queue, id, receives = message.receipt.split("/")
        forged = FORGED | {"receipt": f"a/{id}/{receives}"}
        assert queue == "b"
        await invoked(
            app, "inline", [("await", "queue", "a", "delete", [forged]), ("await", "queue", "a", "change_visibility", [forged, 0])]
        )
        assert (await Queue("b").depth()).held == 1
        assert await Queue("b").delete(message)


async def test_a_dead_letter_queue_is_redriven_only_where_one_may_send(tmp_path: Path) -> None:
    @on(role=Role("r", allow("sqs:StartMessageMoveTask", ARNS["queue"] + "dead"), allow("sqs:SendMessage", ARNS["queue"] + "open")))
    async def f(to: str) -> int:
        return await Queue("dead").redrive(to)

    async with real(tmp_path, f) as app:
        await Queue("dead").send("x")
        assert (await Operations(app).invoke("f", "shut", {}))["error"]["errorType"] == "AccessDenied"
        assert ((await Queue("dead").depth()).available, (await Queue("shut").depth()).available) == (1, 0)
        assert (await Operations(app).invoke("f", "open", {}))["result"] == 1


# Who may start a function


async def test_a_trigger_whose_statement_is_removed_starts_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []

    @on(local("a"), local("b/{x}"))
    async def f(payload: int) -> None:
        got.append(payload)

    @on(local("a"))
    async def g(payload: int) -> None: ...

    async with make_app(tmp_path, f, g) as app:
        do = Operations(app)
        assert await put(app, "a", 1) == 2
        await do.remove_permission("f", "local-a")
        assert await put(app, "a", 2) == 1, "the other function has its own"
        assert await put(app, "b/x", 3) == 1
        status = (await do.status())["functions"]["f"]
        assert (status["barred"], status["accepted"]) == (1, 2)
        assert "f: its function policy does not let local.eventrouter start it: local 'a' is not its (1 so far)" in caplog.text
        assert (await do.permissions("f"))["removed"] == ["local-a"]
    async with make_app(tmp_path, f, g) as app:
        assert await put(app, "a", 4) == 1, "it is kept"
        await Operations(app).add_permission("f", None, INVOKE, "", "local-a")
        assert await put(app, "a", 5) == 2
        await until(lambda: sorted(got) == [1, 3, 5])


async def test_a_deny_is_asked_for_each_subject(tmp_path: Path) -> None:
    from eventrouter_sns import Topic, sns

    got: list[str] = []

    @on(sns("{team}-alerts"))
    async def f(text: str, team: str) -> None:
        got.append(team)

    async with real(tmp_path, f) as app:
        do = Operations(app)
        await Topic("red-alerts").publish("x")
        await do.add_permission("f", "sns.amazonaws.com", INVOKE, ARNS["topic"] + "red-*", "", "Deny")
        for topic in ("red-alerts", "blue-alerts"):
            await Topic(topic).publish("x")
        await until(lambda: len(got) == 2)
        assert sorted(got) == ["blue", "red"]
        assert (await do.simulate("f", "", "", {}, "sns.amazonaws.com", ARNS["topic"] + "red-alerts"))["decision"] == "explicitDeny"
        assert (await do.simulate("f", "", "", {}, "sns.amazonaws.com", ARNS["topic"] + "x-alerts"))["by"].endswith("of a function policy")


async def test_a_queues_messages_wait_until_its_function_may_take_them(tmp_path: Path) -> None:
    got: list[int] = []

    @on(sqs("jobs"))
    async def f(payload: int) -> None:
        got.append(payload)

    async with real(tmp_path, f) as app:
        await Operations(app).remove_permission("f", "sqs-jobs")
        await Queue("jobs").send(1)
    async with real(tmp_path, f) as app:
        for number in (2, 3):
            await Queue("jobs").send(number)
        for _ in range(5):
            await app.journal.flush()
            await asyncio.sleep(0)
        assert got == []
        await Operations(app).add_permission("f", None, INVOKE, "", "sqs-jobs")
        await until(lambda: sorted(got) == [1, 2, 3])


async def test_requests_are_answered_with_403(tmp_path: Path) -> None:
    import aiohttp

    @on(http("GET /now"))
    async def now() -> str:
        return "now"

    @on(http("POST /later", mode="event"))
    async def later() -> None: ...

    async with real(tmp_path, now, later) as app, aiohttp.ClientSession() as client:
        url, do = app.supervisor.url, Operations(app)  # type: ignore[union-attr]
        for change, codes in ((None, (200, 202)), ("remove_permission", (403, 403)), ("add", (200, 202))):
            for function, sid in (("now", "http-GET-now"), ("later", "http-POST-later-event")):
                if change == "add":
                    await do.add_permission(function, None, INVOKE, "", sid)
                elif change:
                    await do.remove_permission(function, sid)
            async with client.get(f"{url}/now") as one, client.post(f"{url}/later") as two:
                assert (one.status, two.status) == codes
                if codes == (403, 403):
                    assert (await one.json())["detail"] == "no request may start this function at present"
        assert [(await do.status())["functions"][name]["barred"] for name in ("now", "later")] == [1, 1]


# The command line

APP = """
from eventrouter import Role, allow, deny, on
from eventrouter_s3 import s3

ingest_role = Role(
    "ingest",
    allow(["s3:GetObject", "s3:ListBucket"], "arn:aws:s3:::uploads", "arn:aws:s3:::uploads/*"),
    deny("s3:*", "arn:aws:s3:::uploads/x"),
)

@on(s3("uploads"), role=ingest_role)
async def ingest(event, context): print("got", event["Records"][0]["s3"]["object"]["key"])

@on()
async def free(event, context): ...
"""


def test_commands_with_and_without_a_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str, code: int = 0) -> str:
        """In this process: of a running router it is as quick as it can be."""
        assert run(["permissions", *words]) == code
        out, err = capsys.readouterr()
        return out + err

    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        shown = place.run("permissions", "show", "ingest").splitlines()
        assert shown[0] == "may be started by"
        assert shown[1].split() == ["allow", "s3.amazonaws.com", "s3-uploads-ObjectCreated", "from", "arn:aws:s3:::uploads"]
        assert shown[2] == "may do, as arn:aws:iam::000000000000:role/ingest"
        assert [line.split() for line in shown[3:]] == [
            ["allow", "arn:aws:s3:::uploads", "s3:GetObject", "s3:ListBucket"],
            ["allow", "arn:aws:s3:::uploads/*", "s3:GetObject", "s3:ListBucket"],
            ["deny", "arn:aws:s3:::uploads/x", "s3:*"],
        ]
        assert "everything within this app: it has no role" in place.run("permissions", "show", "free")
        assert "may do, as arn:aws:iam::000000000000:role/ingest" in place.run("show", "ingest")
        assert json.loads(place.run("list", "--json"))[0]["policy"]["role"] == "ingest"
        assert place.run("permissions", "remove", "ingest", "s3-uploads-ObjectCreated").startswith("ingest: statement s3-uploads-")
        place.serve()
        place.run("send", "s3", "uploads", "before.csv", "app.py")
        found = json.loads(said("show", "ingest", "--json"))
        assert (found["removed"], found["policy"]["Statement"]) == (["s3-uploads-ObjectCreated"], [])
        assert "removed" in said("show", "ingest")
        place.says("its function policy does not let s3.amazonaws.com start it: s3 'uploads/before.csv' is not its")
        assert "statement s3-uploads-ObjectCreated is added" in place.run(
            "permissions", "add", "ingest", "--sid", "s3-uploads-ObjectCreated"
        )
        place.run("send", "s3", "uploads", "after.csv", "app.py")
        place.says("got after.csv")
        assert "got before.csv" not in place.output
        done = json.loads(said("add", "ingest", "--principal", "free", "--json"))
        assert done == {"sid": "statement-1"}
        text = said("simulate", "ingest", "s3:GetObject", "arn:aws:s3:::uploads/y")
        assert text.startswith("allowed by Statement[0] of role ingest\n")
        text = said("simulate", "ingest", "s3:GetObject", "arn:aws:s3:::uploads/x", "-c", "a:b=c")
        assert text.startswith("explicitDeny by Statement[1] of role ingest\n")
        assert said("simulate", "ingest", "sqs:SendMessage", "*") == "implicitDeny: no statement says anything of it\n"
        assert "allowed by no role" in said("simulate", "free", "sqs:SendMessage", "*")
        for words, fault in (
            (("show", "nobody"), "no function is named 'nobody'"),
            (("add", "ingest"), "who? Give --principal"),
            (("add", "ingest", "--principal", "s3.amazonaws.com", "--action", "x"), "Statement[0].Action: 'x': actions must be"),
            (("remove", "ingest", "statement-7"), "there is no statement 'statement-7'; did you mean 'statement-1'?"),
            (("simulate", "ingest", "s3:GetObject"), "give an ACTION and a RESOURCE"),
            (("simulate", "ingest", "a:b", "*", "-c", "x"), "write KEY=VALUE"),
        ):
            assert fault in said(*words, code=2)


def test_require_outside_of_a_router_allows() -> None:
    permissions.require("s3:GetObject", "arn:aws:s3:::a/b")
