"""Every example runs as its reader would run it: `eventrouter serve`, then real input."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from served import Place, wait_for
from servers import free_port

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A copy of the examples, with ports that are free."""
    shutil.copytree(
        EXAMPLES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("buckets", "shop.db*", ".eventrouter", "__pycache__")
    )
    config = tmp_path / "eventrouter.toml"
    text = config.read_text()
    assert "18830" in text
    config.write_text(text.replace("18830", str(free_port())) + "\n[http]\nport = 0\n")
    with Place(tmp_path) as made:
        yield made


def test_tour(place: Place) -> None:
    place.serve()
    assert "Try these in another terminal:" in place.output
    shutil.copy(EXAMPLES / "tour.py", place.folder / "buckets/inbox/hello.txt")
    place.says(f"got hello.txt, {(EXAMPLES / 'tour.py').stat().st_size} bytes")
    place.run("send", "mqtt", "sensors/kitchen/temperature", '{"celsius": 21.5}')
    place.says("kitchen: 21.5 °C")
    assert "order" in json.loads(place.curl("/orders", "-X", "POST", "-d", '{"item": "lamp", "count": 2}'))
    assert "$.count: expected int, got str" in place.curl("/orders", "-X", "POST", "-d", '{"item": "lamp", "count": "2"}')
    place.says("(RetriesExhausted)")
    place.says("alarm: ship: no lamp in stock")
    (letter,) = json.loads(place.run("dlq", "list", "--json"))
    assert (letter["function"], letter["error_message"], letter["attempts"]) == ("ship", "no lamp in stock", 3)
    place.curl("/stock/lamp", "-X", "POST")
    assert "1" in place.run("dlq", "redrive", "--function", "ship")
    place.says("shipped 2 x lamp")
    assert json.loads(place.run("dlq", "list", "--json")) == []


def test_s3_import(place: Place) -> None:
    place.serve("s3_import.py")
    (place.folder / "prices.csv").write_text("name,price\nlamp,10.5\nchair,20\n")
    place.run("send", "s3", "uploads", "berlin/may.csv", "prices.csv")
    summary = place.folder / "buckets/summaries/berlin/may.json"
    wait_for(summary.exists)
    assert json.loads(summary.read_text()) == {"shop": "berlin", "rows": 2, "total": 30.5}
    (place.folder / "buckets/uploads/berlin/june.csv").write_text("name\nlamp\n")
    place.says("berlin/june.csv has no column 'price'")
    (letter,) = json.loads(place.run("dlq", "list", "--json"))
    assert (letter["reason"], letter["attempts"]) == ("Rejected", 1)
    (place.folder / "buckets/uploads/berlin/may.csv").unlink()
    wait_for(lambda: not summary.exists())


def test_http_notes(place: Place) -> None:
    place.serve("http_notes.py")
    added = place.curl("/notes", "-i", "-X", "POST", "-d", '{"text": "buy milk"}')
    assert "201 Created" in added
    assert "Location: /notes/1" in added
    assert json.loads(place.curl("/notes/1")) == {"text": "buy milk", "done": False}
    assert json.loads(place.curl("/notes/2")) == {"detail": "there is no note 2"}
    assert json.loads(place.curl("/notes?done=true&limit=5")) == []
    assert json.loads(place.curl("/notes")) == ["buy milk"]
    assert json.loads(place.curl("/notes/one"))["status"] == 400
    assert json.loads(place.curl("/notes", "-d", '{"text": ""}'))["detail"] == "$.text: expected str of length >= 1"
    assert json.loads(place.curl("/openapi.json"))["paths"]["/notes/{id}"]["get"]["parameters"][0]["schema"] == {"type": "integer"}


def test_http_live(place: Place) -> None:
    place.serve("http_live.py")
    assert json.loads(place.curl("/jobs/7/progress"))["status"] == 403
    key = ["-H", "x-api-key: only-for-the-example"]
    events = place.curl("/jobs/7/progress?pause=0", "-N", *key).split("\n\n")
    assert [json.loads(event.removeprefix("data: "))["percent"] for event in events[:5]] == [0, 25, 50, 75, 100]
    assert events[5:] == ["event: done\ndata: bye", ""]
    assert json.loads(place.curl("/jobs/seven/progress", *key))["detail"] == "job: expected int, got str"
    assert "Access-Control-Allow-Origin: *" in place.curl("/jobs/7/progress?pause=0", "-i", "-H", "Origin: https://a.example", *key)
    assert place.curl("/primes?below=12").split() == ["2", "3", "5", "7", "11"]


def test_mqtt_thermostat(place: Place) -> None:
    place.serve("mqtt_thermostat.py")
    with place.subscribed("home/+/heater") as heard:
        place.run("send", "mqtt", "home/kitchen/temperature", '{"celsius": 20.5}')
        assert heard() == "home/kitchen/heater on"
        place.run("send", "mqtt", "home/kitchen/target", "20")
        place.run("send", "mqtt", "home/kitchen/temperature", '{"celsius": 20.5}')
        assert heard() == "home/kitchen/heater off"
    place.run("send", "mqtt", "home/kitchen/temperature", '{"celsius": 75}')
    place.says("kitchen: 75 °C, look after it!")
    assert "20.5 °C" not in place.output
    place.run("send", "mqtt", "home/kitchen/temperature", '{"celsius": 200}')
    place.says("$.celsius: expected float")


def test_cron_report(place: Place) -> None:
    place.serve("cron_report.py")
    assert "cron 0 7 * * MON-FRI Europe/Berlin" in place.output
    place.run("invoke", "daily")
    (report,) = (place.folder / "buckets/reports").glob("*.txt")
    assert report.read_text() == "all is well\n"
    place.run("invoke", "probe")
    assert "still here" in place.output


def test_sns_orders(place: Place) -> None:
    place.serve("sns_orders.py")
    place.run("send", "sns", "orders-placed", '{"id": "7", "items": ["lamp"]}')
    for said in ("order 7 is placed", "order 7 is shipped", "mail: Your order is on its way"):
        place.says(said)
    assert "large" not in place.output
    place.run("send", "sns", "orders-placed", '{"id": "8", "items": []}')
    place.says("order 8 is empty")
    place.run("send", "sns", "orders-placed", '{"id": "9", "items": ["lamp", "chair", "table"]}')
    place.says("order 9 is large: thank you")


def test_sqs_jobs(place: Place) -> None:
    place.serve("sqs_jobs.py")
    assert "id" in json.loads(place.curl("/jobs", "-d", '{"image": "cat.jpg", "width": 80}'))
    place.says("cat.jpg is 80 wide now")
    sent = json.loads(place.run("send", "sqs", "resize-jobs", '{"image": "dog.jpg", "width": 0}', "--attribute", "from=me"))
    place.says("attempt 2: dog.jpg can't be 0 wide; `eventrouter dlq show")
    assert place.run("dlq", "list", "--function", "resize").strip() == "no dead letters"
    assert "sqs:resize-jobs" in place.run("dlq", "list")
    (letter,) = json.loads(place.run("dlq", "list", "--function", "sqs:resize-jobs", "--json"))
    assert (letter["reason"], letter["attempts"], letter["event"]["id"]) == ("RetriesExhausted", 2, sent["MessageId"])
    assert json.loads(place.curl("/failed", "-X", "POST")) == ["dog.jpg"]
    assert json.loads(place.curl("/failed", "-X", "POST")) == []
    assert "1" in place.run("dlq", "redrive", "--function", "sqs:resize-jobs")
    wait_for(lambda: json.loads(place.curl("/retry", "-X", "POST")) == {"jobs": 1})
    wait_for(lambda: json.loads(place.curl("/failed", "-X", "POST")) == ["dog.jpg"])


def test_tables_shop(place: Place) -> None:
    place.serve("tables_shop.py")
    place.run("send", "tables", "stock", '{"item": "lamp", "count": 3}')
    with closing(sqlite3.connect(place.folder / "shop.db")) as db:  # any program may write
        db.execute("INSERT INTO orders (item, count) VALUES ('lamp', 2)")
        db.commit()
        place.says("order 1: 2 x lamp")
        place.says("order more of lamp: 1 left")
        db.execute("UPDATE orders SET status = 'sent'")
        db.commit()
    place.says("order 1: new -> sent")
    assert json.loads(place.curl("/stock/lamp")) == {"item": "lamp", "count": 1}
    place.run("send", "tables", "orders", '{"item": "lamp", "count": 2}')
    place.says("RuntimeError: no lamp in stock")


def test_events_shop(place: Place) -> None:
    place.serve("events_shop.py")
    assert "event" in json.loads(place.curl("/orders", "-d", '{"id": "7", "total": 120}'))
    place.says("Order Placed: order 7 is large")
    place.says("Order Placed: {'id': '7', 'total': 120.0}\n")
    place.run("send", "events", '{"Source": "shop", "DetailType": "Order Changed", "Detail": "{\\"id\\": \\"8\\", \\"total\\": 20000}"}')
    place.says("alarm: check: order 8 is too large")
    event = '{"specversion": "1.0", "id": "1", "source": "shop", "type": "order.placed", "data": {"id": "9", "total": 5}}'
    assert json.loads(place.curl("/events", "-H", "Content-Type: application/cloudevents+json", "-d", event)) == {"id": "shop 1"}
    place.says("order.placed: {'id': '9', 'total': 5}\n")
    assert place.run("replay", "--function", "log", "--since", "1h") == "3 replayed\n"
    place.says("order.placed: {'id': '9', 'total': 5} again")


def test_webhook_github(place: Place) -> None:
    place.serve("webhook_github.py")
    place.run("send", "webhook", "github", '{"ref": "refs/heads/main", "after": "6113728f27ae"}', "--event", "push")
    place.says("deploying main at 6113728")
    place.run(
        "send", "webhook", "github", '{"action": "opened", "issue": {"number": 7, "title": "It burns"}}', "--event", "issues", "--id", "d-1"
    )
    place.says("#7 It burns (delivery d-1)")
    assert json.loads(place.curl("/webhooks/github", "-H", "X-GitHub-Event: push", "-d", '{"ref": "x", "after": "y"}'))["status"] == 401


def test_poll_releases(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "releases").write_text('[{"id": 1, "tag_name": "v3.14.0"}, {"id": 2, "tag_name": "v3.14.1"}]')
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(place.folder)]
    with subprocess.Popen([*command[:1], "-u", *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split()[5]
        monkeypatch.setenv("RELEASES", f"http://127.0.0.1:{port}/releases")
        try:
            place.serve("poll_releases.py")
            place.says("v3.14.0 is out")
            place.says("v3.14.1 is out")
        finally:
            server.terminate()


def test_every_example_is_tested() -> None:
    here = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f"def test_{example.stem}(" in here, f"{example.name} has no test"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_importing_an_example_starts_nothing(example: Path) -> None:
    code = "import runpy, sys, threading; runpy.run_path(sys.argv[1]); assert threading.active_count() == 1"
    done = subprocess.run([sys.executable, "-c", code, str(example)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_languages(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "languages", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("buckets", ".eventrouter"))
    with Place(tmp_path) as place:
        listed = place.run("list")
        assert re.search(r"measure +s3 texts.* +nodejs index.handler ", listed)
        assert re.search(r"runtime +provided\n.*code +functions/upper\n", place.run("show", "upper"))
        (policy,) = [each["policy"] for each in json.loads(place.run("list", "--json")) if each["name"] == "measure"]
        assert (policy["runtime"], policy["handler"], policy["code"], policy["command"]) == (
            "nodejs", "index.handler", "functions/measure", None,
        )  # fmt: skip
        assert "2 functions of functions/measure, functions/upper" in place.serve("--port", "0")
        (tmp_path / "buckets/texts/may day.md").write_text("one two\nthree\n")
        place.says("may day.md: 3 words")
        assert place.curl("/upper", "-H", "content-type: text/plain", "-d", "hello") == "HELLO"
