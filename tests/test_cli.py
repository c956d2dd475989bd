"""The command line as users type it: real processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventrouter.cli import run
from served import Place, wait_for

APP = """
import json
from eventrouter import Retry, fixed, on
from eventrouter_http import http
from eventrouter_sns import Topic, sns
import msgspec

class Order(msgspec.Struct):
    item: str

@on(http("POST /orders"), tags={"team": "shop"}, description="Takes orders.")
async def take(order: Order) -> dict:
    print("taking", order.item)
    return {"took": order.item}

@on(sns("orders"), retries=1, backoff=fixed(0))
async def ship(order: Order) -> None:
    with open("shipped.txt") as stock:
        if order.item not in stock.read():
            raise LookupError(f"no {order.item}")

@on(sns("plain"))
def plain(event, context):
    print(context.aws_request_id == "" , file=open("plain.txt", "a"))
    return {"n": len(event["Records"])}
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    (tmp_path / "shipped.txt").write_text("chair")
    with Place(tmp_path) as made:
        yield made


def letters(place: Place, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = json.loads(place.run("dlq", "list", "--json"))
        return len(found) == count

    wait_for(look)
    return found


def test_serve_send_die_list_and_redrive(place: Place) -> None:
    printed = place.serve()
    assert "3 functions of app.py" in printed
    assert re.search(r"take +http POST /orders", printed)
    assert re.search(r"http on http://127.0.0.1:\d+", printed)
    sent = json.loads(place.run("send", "sns", "orders", '{"item": "lamp"}'))
    (letter,) = letters(place, 1)
    assert letter.keys() == {"id", "function", "reason", "error_type", "error_message", "attempts", "died_at", "event"}
    assert letter["event"].keys() == {"id", "source", "type", "subject", "time", "data"}
    assert (letter["function"], letter["reason"], letter["error_type"], letter["error_message"], letter["attempts"]) == (
        "ship", "RetriesExhausted", "LookupError", "no lamp", 2,
    )  # fmt: skip
    assert (letter["event"]["id"], letter["event"]["data"]) == (sent["MessageId"], {"item": "lamp"})
    assert json.loads(place.run("dlq", "show", letter["id"])) == letter
    assert "no dead letter nothing" in place.run("dlq", "show", "nothing", code=1)
    assert "LookupError: no lamp" in place.run("dlq", "list", "--function", "ship")
    assert place.run("dlq", "list", "--error", "KeyError") == "no dead letters\n"
    assert place.run("dlq", "list", "--since", "2999-01-01") == "no dead letters\n"
    (where,) = json.loads(place.run("event", sent["MessageId"], "--json"))
    assert (where["function"], where["state"], where["attempts"]) == ("ship", "dead", 2)
    (place.folder / "shipped.txt").write_text("lamp")
    assert place.run("dlq", "redrive", letter["id"]) == "1 redriven\n"
    letters(place, 0)
    assert place.run("dlq", "redrive", letter["id"], code=1) == "0 redriven\n"
    assert "not in the journal" in place.run("event", sent["MessageId"], code=1)
    place.run("send", "sns", "orders", '{"item": 5}')
    letters(place, 1)
    assert "or a filter (--function, --error, --since), or --all" in place.run("dlq", "purge", code=2)
    assert place.run("dlq", "purge", "--error", "InvalidPayload") == "1 purged\n"
    letters(place, 0)
    assert place.stop() == 0
    assert "stopping: running handlers have 30 s" in place.output


def test_list_show_and_doctor(place: Place) -> None:
    (first, *others) = json.loads(place.run("list", "--json"))
    assert first.keys() == {"name", "triggers", "policy", "tags", "module"}
    assert (first["name"], first["triggers"], first["tags"], first["module"]) == ("take", ["http POST /orders"], {"team": "shop"}, "app")
    assert (first["policy"]["timeout"], first["policy"]["retries"]) == (3, 2)
    assert [it["name"] for it in others] == ["ship", "plain"]
    assert [line.split()[0] for line in place.run("list", "--tag", "team=shop").splitlines()] == ["FUNCTION", "take"]
    shown = place.run("show", "take")
    assert "Takes orders." in shown
    assert re.search(r"started by +http POST /orders", shown)
    assert "no function is named 'tale'; did you mean 'take'?" in place.run("show", "tale", code=2)
    doctor = place.run("doctor")
    assert "plugin mqtt" in doctor
    assert "`def` handlers run in processes" in doctor
    assert "3 functions: take, ship, plain" in doctor
    (place.folder / "app.py").write_text("import nothing_like_this")
    assert "PROBLEM" in place.run("doctor", code=1)


def test_invoke_with_and_without_a_router(place: Place) -> None:
    for online in (False, True):
        if online:
            place.serve()
        done = place.result("invoke", "take", '{"item": "lamp"}')
        assert (json.loads(done.stdout), done.returncode) == ({"took": "lamp"}, 0)
        assert "taking lamp" in done.stderr
        assert re.search(r"REPORT RequestId: \S+\tDuration: \d+\.\d\d ms\tBilled Duration: 100 ms\tMemory Size", done.stderr)
        assert json.loads(place.result("invoke", "take", "-", input='{"item": "x"}').stdout) == {"took": "x"}
        (place.folder / "in.json").write_text('{"item": "file"}')
        assert json.loads(place.result("invoke", "take", "@in.json").stdout) == {"took": "file"}
        failed = place.result("invoke", "ship", '{"item": "lamp"}')
        assert failed.returncode == 1
        error = json.loads(failed.stdout)
        assert (error["errorType"], error["errorMessage"]) == ("LookupError", "no lamp")
        assert "app.py" in error["stackTrace"][0]
        assert json.loads(place.result("invoke", "take", '{"item": 1}').stdout)["errorMessage"] == "$.item: expected str, got int"
        assert "no function is named 'tak'; did you mean 'take'?" in place.run("invoke", "tak", code=2)
        assert "accepted as event" in place.run("invoke", "ship", '{"item": "lamp"}', "--async")
    letters(place, 2)  # one was journalled before there was a router


def test_a_second_router_is_refused(place: Place) -> None:
    place.serve()
    assert place.router is not None
    said = place.run("serve", code=1)
    assert f"another eventrouter (pid {place.router.pid}) has this folder" in said
    place.stop()
    place.serve()


def test_send_without_a_router(place: Place) -> None:
    assert "no router is running on" in place.run("send", "sns", "orders", "x", code=1)


def test_help_of_send_and_sample_has_what_each_source_takes(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.folder)

    def help_of(*words: str) -> str:
        assert run([*words, "--help"]) == 0
        return capsys.readouterr().out

    for command, usage, text in (
        ("send", "sns TOPIC MESSAGE", "Publish MESSAGE"),
        ("sample", "sns [TOPIC] [MESSAGE]", "published to TOPIC"),
    ):
        of_all, of_one = help_of(command), help_of(command, "sns")
        assert f"eventrouter {command} {usage} [--" in of_all
        assert f"eventrouter {command} sqs " in of_all
        assert text in of_one
        assert "sqs" not in of_one


def test_send_says_what_it_takes(place: Place) -> None:
    place.serve()
    assert "usage: eventrouter send sns TOPIC MESSAGE [--attribute NAME=VALUE] [--subject ...]" in place.run(
        "send", "sns", "orders", code=2
    )
    assert "no option --atribute; did you mean 'attribute'?" in place.run("send", "sns", "orders", "x", "--atribute", "a=b", code=2)
    assert "no source takes events under the name 'sn'; did you mean 'sns'?" in place.run("send", "sn", "x", code=2)
    assert "send mqtt: QOS 'x'" in place.run("send", "mqtt", "a", "b", "--qos", "x", code=2)


def test_logs_as_json(place: Place) -> None:
    place.serve("--log-format", "json")
    place.run("send", "sns", "orders", '{"item": "lamp"}')
    letters(place, 1)
    entries = [json.loads(line) for line in place.output.splitlines() if line.startswith("{")]
    dead = next(entry for entry in entries if entry.get("action") == "invocation.dead")
    assert (dead["level"], dead["function"]) == ("ERROR", "ship")
    assert dead["invocation"] in dead["message"]


def test_what_invocations_print_is_in_the_log_and_can_be_followed(place: Place) -> None:
    (place.folder / "app.py").write_text(
        APP + '@on(sns("loud"))\ndef loud(event, context):\n    print(event["Records"][0]["Sns"]["Message"])\n'
        '    import logging\n    logging.getLogger("mine").warning("beware")\n\n'
        '@on(sns("inline"))\nasync def inline(event, context):\n    import logging\n    print("here")\n'
        '    logging.getLogger("mine").warning("and here")\n'
    )
    place.serve()
    follow = subprocess.Popen(
        [sys.executable, "-u", "-m", "eventrouter", "tail", "loud"], cwd=place.folder, stdout=subprocess.PIPE, text=True
    )
    assert follow.stdout is not None

    def send() -> bool:  # until the one that looks on is there
        place.run("send", "sns", "loud", "hello")
        return bool(select.select([follow.stdout], [], [], 0.1)[0])

    try:
        wait_for(send)
        start = follow.stdout.readline()
        found = re.fullmatch(r"loud (\S+): START RequestId: (\S+) Version: \$LATEST\n", start)
        assert found, start
        assert found[1] == found[2]
        lines = [follow.stdout.readline().rstrip("\n").removeprefix(f"loud {found[1]}: ") for _ in range(4)]
        assert lines[:3] == ["hello", "[WARNING] mine beware", f"END RequestId: {found[1]}"]
        assert lines[3].startswith(f"REPORT RequestId: {found[1]}\tDuration: ")
    finally:
        follow.kill()
        follow.communicate()
    for line in ("hello", "[WARNING] mine beware", f"END RequestId: {found[1]}"):
        place.says(f" INFO loud {found[1]}: {line}\n")
    place.run("send", "sns", "inline", "x")
    place.says("REPORT")
    wait_for(lambda: re.search(r" INFO inline (\S+): here\n.* WARNING inline \1: and here\n.* INFO inline \1: END ", place.output))
    assert "take writes no log" in place.run("tail", "take", code=2)
    said = place.run("invoke", "loud", '{"Records": [{"Sns": {"Message": "by hand"}}]}')
    assert re.search(r"START RequestId: (\S+) .*\nby hand\n\[WARNING\] mine beware\nEND RequestId: \1\n(?s:.*)REPORT RequestId: \1\t", said)


def test_reload(place: Place) -> None:
    place.serve("--reload")
    (place.folder / "app.py").write_text(APP.replace("def plain", "def renamed"))
    wait_for(lambda: "renamed" in place.output and place.output.count("\nready") == 2)
    (place.folder / "app.py").write_text("def broken(:")
    wait_for(lambda: "waiting for a change" in place.output)
    assert "SyntaxError" in place.output
    (place.folder / "app.py").write_text(APP)
    wait_for(lambda: place.output.count("\nready") == 3)


def test_drain_lets_a_handler_finish_and_a_second_signal_does_not(place: Place) -> None:
    (place.folder / "app.py").write_text(
        "import asyncio\nfrom eventrouter import on\nfrom eventrouter_sns import sns\n\n"
        '@on(sns("slow"), timeout=60)\nasync def slow(text: str) -> None:\n'
        '    print("begun", flush=True)\n    await asyncio.sleep(float(text))\n    print("ended", flush=True)\n'
    )
    place.serve()
    place.run("send", "sns", "slow", "0.5")
    wait_for(lambda: "begun" in place.output)
    assert place.stop() == 0
    assert "ended" in place.output
    place.serve()
    place.run("send", "sns", "slow", "50")
    wait_for(lambda: "begun" in place.output)
    assert place.router is not None
    place.router.terminate()
    wait_for(lambda: "stopping" in place.output)
    assert place.stop() == 128 + signal.SIGTERM
    assert "what was running will run again" in place.output
    place.serve()
    wait_for(lambda: "begun" in place.output)


TWICE = """
from eventrouter import on
from eventrouter_sns import sns
@on(sns("a"))
def one(event, context): ...
@on(sns("b"), name="one")
def two(event, context): ...
"""

HEAD = """from eventrouter import Batch, Idempotent, exponential, on
from eventrouter_cron import cron
from eventrouter_http import http
from eventrouter_mqtt import mqtt
"""
ONE = '@on(http("GET /"))\nasync def f(): ...\n'
COMMANDS = ("serve", "list", "show", "invoke", "send", "dlq", "event", "doctor")


@pytest.mark.parametrize(
    ("app", "toml", "fault"),
    [
        ('@on(mqtt("a/b#"))\nasync def f(x): ...', "", r"app.py:5: mqtt\('a/b#'\): .*'#' must be the whole of the last level; see 'b#'"),
        ('@on(cron("0 0 31 4 ? *"))\nasync def f(): ...', "", r"app.py:5: cron: '0 0 31 4 \? \*' never fires: there is no such day"),
        ('@on(cron("61 * * * ? *"))\nasync def f(): ...', "", r"app.py:5: cron: minute '61': '61' must be 0 to 59"),
        ('@on(http("GET x"))\nasync def f(): ...', "", r"app.py:5: http\('GET x'\): the path 'x' must start with '/'"),
        ('@on(http("GET /{x}"))\nasync def f(x: str, y: int, z: int): ...', "",
         r"app.py:5: f: nothing fills parameter 'y' \(http GET /\{x\}\) or 'z'"),
        ('@on(http("GET /"), retrys=3)\nasync def f(): ...', "", r"app.py:5: unknown keyword 'retrys'; did you mean 'retries'\?"),
        ('@on(http("GET /"), timeout=0)\nasync def f(): ...', "", r"app.py:5: timeout=0: expected float > 0"),
        ('@on(mqtt("a"), batch=Batch(0))\nasync def f(x: list): ...', "", r"app.py:5: Batch: size=0: 1 to 10000"),
        ('@on(mqtt("a"), idempotent=Idempotent("id"))\nasync def f(x): ...', "", r"app.py:5: JSON path 'id': 'd' is not understood"),
        ('@on(mqtt("a"), backoff=exponential(2, 0, 9))\nasync def f(x): ...', "", r"app.py:5: exponential\(2, 0, 9\): factor must be 1"),
        (ONE, "[functions.f]\nbatch = {size = 0}", r"\[functions.f\]: batch=\{'size': 0\}: batch: size=0: 1 to 10000"),
        (ONE + ONE.replace("f()", "g()"), "", r"functions 'f' and 'g' both answer 'GET /'"),
        (ONE, "[http]\nprot = 1", r"eventrouter.toml: \[http\] unknown key 'prot'; did you mean 'port'\?"),
        (ONE, "[htp]\n", r"eventrouter.toml: unknown section \[htp\]; did you mean 'http'\?"),
        (ONE, "[http\n", r"eventrouter.toml: not valid TOML"),
        (ONE, "[functions.g]\ntimeout = 3", r"\[functions.g\]: no such function; known: f"),
        ("x = 1", "", r"no handlers in .*app.py; mark a function with @on"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_culprit_and_remedy(tmp_path: Path, app: str, toml: str, fault: str) -> None:
    place = Place(tmp_path)
    (tmp_path / "app.py").write_text(HEAD + app)
    (tmp_path / "eventrouter.toml").write_text(toml)
    said = place.run("serve", code=2)
    assert re.search(fault, said), said
    assert len(said.splitlines()) <= 2
    assert "Traceback" not in said
    assert "Traceback" in place.run("--debug", "serve", code=2)


def test_two_functions_of_one_name(place: Place) -> None:
    (place.folder / "app.py").write_text(TWICE)
    said = place.run("serve", code=2)
    assert re.search(r"two functions are named 'one': .*app.py:4 and .*app.py:6; give one a name=", said)


def test_an_error_in_the_users_module_shows_its_traceback(place: Place) -> None:
    (place.folder / "app.py").write_text("def helper():\n    return 1 / 0\n\nhelper()\n")
    said = place.run("serve", code=2)
    assert 'app.py", line 4, in <module>' in said
    assert said.splitlines()[-1].endswith("app.py can't be imported: ZeroDivisionError: division by zero")
    assert "eventrouter/functions.py" not in said
    assert "absent.py: no such file; name a Python file" in place.run("serve", "absent.py", code=2)
    assert "no module named 'absent'" in place.run("serve", "absent", code=2)


def test_a_port_that_is_taken(place: Place) -> None:
    printed = place.serve()
    found = re.search(r"127.0.0.1:(\d+)", printed)
    assert found
    said = place.run("serve", "--data", "other", "--port", found[1], code=1)
    assert f"http: can't listen on 127.0.0.1:{found[1]}" in said
    assert "choose another with --port" in said
    assert not list((place.folder / "other").glob("*.sock"))


def test_flag_wins_over_environment_over_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTROUTER_APP__DATA", "from-environment")
    (place.folder / "eventrouter.toml").write_text('[http]\nport = 0\n[app]\ndata = "from-file"\n')
    assert "from-environment;" in place.serve()
    place.stop()
    assert "from-flag;" in place.serve("--data", "from-flag")
    place.stop()
    monkeypatch.setenv("EVENTROUTER_HTTP__PROT", "1")
    assert "EVENTROUTER_HTTP__PROT unknown key 'prot'; did you mean 'port'?" in place.run("list", code=2)


def test_a_data_folder_whose_path_is_too_long_for_a_socket(
    place: Place, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path_factory.mktemp("run")  # a short path
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("EVENTROUTER_APP__DATA", "d" * 120)
    place.serve()
    assert json.loads(place.run("dlq", "list", "--json")) == []
    assert len(list(runtime.iterdir())) == 1
    place.stop()
    assert not list(runtime.iterdir())


def test_only_its_owner_may_use_the_socket(place: Place) -> None:
    place.serve()
    assert (place.folder / ".eventrouter" / "control.sock").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_explains(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    assert "Usage: eventrouter" in capsys.readouterr().out


def test_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serv"]) == 2
    assert "No such command 'serv'" in capsys.readouterr().err
    assert run(["dlq", "list", "--since", "yesterday"]) == 2
    assert "'yesterday' is no time; write 2h, 3d" in capsys.readouterr().err
    assert os.environ.get("EVENTROUTER_APP__DATA") is None
