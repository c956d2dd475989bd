import subprocess
import sys

import msgspec
import pytest

from eventrouter import Context, Event
from eventrouter.clock import ManualClock
from eventrouter.model import new_id


def test_an_event_survives_packing() -> None:
    event = Event("mqtt", "mqtt.message", "a/b", b"\x00\xff", "text/plain", id="x", time=1.5, attributes={"qos": 1, "deep": [{"a": None}]})
    again = Event.unpack(event.pack())
    fields = ("id", "source", "type", "subject", "data", "content_type", "time", "dedupe")
    assert [getattr(again, f) for f in fields] == [getattr(event, f) for f in fields]
    assert again.attributes == event.attributes


def test_an_event_without_a_natural_id_is_never_deduplicated_even_after_packing() -> None:
    first, second = Event("mqtt", "t", "a"), Event("mqtt", "t", "a")
    assert first.id != second.id
    assert not first.dedupe
    assert not Event.unpack(first.pack()).dedupe
    assert Event("s3", "t", "a", id="k1").dedupe


@pytest.mark.parametrize(
    ("data", "shown"), [(b'{"a": 1}', {"a": 1}), (b"on", "on"), (b"\xff", {"base64": "/w=="}), (b"", ""), (b"21.5", 21.5)]
)
def test_the_envelope_shows_data_as_json_text_or_base64(data: bytes, shown: object) -> None:
    envelope = Event("mqtt", "t", "a", data, time=1767225600.5).envelope()
    assert envelope["data"] == shown
    assert envelope["time"] == "2026-01-01T00:00:00.500Z"
    assert list(envelope) == ["id", "source", "type", "subject", "time", "data"]


def test_json_is_decoded_once() -> None:
    event = Event("x", "t", "a", b"[1]")
    assert event.json() is event.json()
    with pytest.raises(msgspec.DecodeError):
        Event("x", "t", "a", b"{").json()


def test_ids_are_unique_and_of_uuid_shape() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {tuple(map(len, id.split("-"))) for id in ids} == {(8, 4, 4, 4, 12)}


FORKS = """
import os
from eventrouter.model import new_id

before = new_id()
child = os.fork()
if child:
    os.waitpid(child, 0)
print(new_id() if not child else before)
"""


def test_a_forked_child_makes_other_ids() -> None:  # not of this process: it has threads, which Python 3.12 warns of
    said = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True).stdout
    childs, parents = said.split()
    assert childs[:8] != parents[:8]


def test_the_context_has_lambdas_fields() -> None:
    clock = ManualClock()
    context = Context("record", "id-1", clock.monotonic() + 3, clock.monotonic, {"A": "b"}, attempt=2)
    assert context.function_name == "record"
    assert context.invoked_function_arn == "arn:aws:lambda:local:000000000000:function:record"
    assert context.log_group_name == "/aws/lambda/record"
    assert context.log_stream_name.startswith("[$LATEST]")
    assert (context.function_version, context.memory_limit_in_mb, context.identity, context.client_context) == (
        "$LATEST",
        "128",
        None,
        None,
    )
    assert (context.aws_request_id, context.env, context.attempt) == ("id-1", {"A": "b"}, 2)
    assert context.get_remaining_time_in_millis() == 3000
    clock.advance(2.5)
    assert context.get_remaining_time_in_millis() == 500
    clock.advance(9)
    assert context.get_remaining_time_in_millis() == 0
