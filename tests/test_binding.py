import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

from eventrouter import Batch, Context, Depends, Event, on
from eventrouter.binding import Dependencies
from eventrouter.clock import ManualClock
from eventrouter.errors import ConfigError, InvalidPayload
from eventrouter.functions import Function, Policy
from support import LocalTrigger, local


class Reading(msgspec.Struct):
    celsius: float


@dataclasses.dataclass
class DataReading:
    celsius: float


class TypedReading(TypedDict):
    celsius: float


class PydanticReading(pydantic.BaseModel):
    celsius: float


class PowertoolsLikeContext:
    pass


class QueryTrigger(LocalTrigger):
    def query(self, event: Event) -> Mapping[str, list[str]]:
        found: Mapping[str, list[str]] = event.attributes.get("query", {})
        return found


CONTEXT = Context("f", "id", 0, ManualClock().monotonic)


def bind(handler: Callable[..., Any], data: bytes = b"null", pattern: str = "a/{x}", subject: str = "a/7", query: Any = None) -> Any:
    trigger = local(pattern) if query is None else QueryTrigger(pattern)
    function = Function(handler, [trigger], Policy())
    event = Event("local", "t", subject, data, attributes={"query": query} if query is not None else None)
    captures = trigger.matches(event)
    assert captures is not None
    args, kwargs = function.binders[trigger].bind(event, captures, CONTEXT)
    return handler(*args, **kwargs)


def fault(handler: Callable[..., Any], *triggers: LocalTrigger) -> str:
    with pytest.raises(ConfigError) as caught:
        Function(handler, triggers or (local("a/{x}"),), Policy())
    return str(caught.value)


@pytest.mark.parametrize(
    "handler",
    [
        lambda event, context: (event, context),
        lambda event, ctx: (event, ctx),
        lambda e, _: (e, _),
        lambda e, _context: (e, _context),
    ],
)
def test_two_parameters_with_a_context_make_a_lambda_function(handler: Any) -> None:
    assert bind(handler, b'{"n": 1}') == ({"Records": [{"n": 1}]}, CONTEXT)


def test_lambda_functions_by_annotation() -> None:
    def powertools(payload: dict[str, Any], anything: PowertoolsLikeContext) -> Any:
        return payload

    def plain(event: Mapping[str, Any], context: Any) -> Any:
        return event

    def ours(event: dict[str, Any], it: Context) -> Any:
        return event

    def foreign(event: "dict[str, Any]", it: "LambdaContext") -> "Answer":  # type: ignore[name-defined]  # noqa: F821
        return event

    def unknown(event: "Order", it: "LambdaContext") -> Any:  # type: ignore[name-defined]  # noqa: F821
        return event

    for handler in (powertools, plain, ours, foreign):
        assert bind(handler, b"1") == {"Records": [1]}
    assert "can't be read: name 'Order' is not defined" in fault(unknown)


@pytest.mark.parametrize("batch", [None, Batch(2)])
def test_what_a_lambda_function_would_get_is_no_json(batch: Batch | None) -> None:
    def handler(event, context): ...  # type: ignore[no-untyped-def]

    trigger = local("a/{x}")
    binder = Function(handler, [trigger], Policy(batch=batch)).binders[trigger]
    for data in (b"on", b"\xff"):
        event = Event("local", "t", "a/7", data)
        with pytest.raises(InvalidPayload, match=r"^\$: not JSON, as local a/\{x\} hands it to Lambda functions: "):
            binder.one(event, {}) if batch else binder.bind(event, {}, CONTEXT)


def test_a_typed_first_parameter_is_no_lambda_function() -> None:
    def typed(reading: Reading, context: Context) -> Any:
        return reading, context

    assert bind(typed, b'{"celsius": 1}') == (Reading(1), CONTEXT)


@pytest.mark.parametrize("kind", [Reading, DataReading, TypedReading, PydanticReading])
def test_payload_types(kind: Any) -> None:
    def handler(reading: kind, x: str) -> Any:
        return reading, x

    reading, x = bind(handler, b'{"celsius": 20.5}')
    assert (reading["celsius"] if isinstance(reading, dict) else reading.celsius) == 20.5
    assert x == "7"
    with pytest.raises(InvalidPayload, match=r"^\$\.celsius: "):
        bind(handler, b'{"celsius": "warm"}')
    with pytest.raises(InvalidPayload, match=r"^\$"):
        bind(handler, b"{")


def test_the_path_of_the_fault_is_told_in_full() -> None:
    def handler(reading: list[Reading]) -> Any: ...

    with pytest.raises(InvalidPayload, match=r"^\$\[1\]\.celsius: expected float, got str$"):
        bind(handler, b'[{"celsius": 1}, {"celsius": "x"}]')


@pytest.mark.parametrize(
    ("kind", "data", "value"),
    [
        (bytes, b"\xff", b"\xff"),
        (str, b"on", "on"),
        (dict, b'{"a": 1}', {"a": 1}),
        (dict[str, int], b'{"a": 1}', {"a": 1}),
        (Mapping[str, int], b'{"a": 1}', {"a": 1}),
        (list, b"[1]", [1]),
        (float, b"21.5", 21.5),
        (Any, b'"x"', "x"),
        (list[PydanticReading], b'[{"celsius": 1}]', [PydanticReading(celsius=1)]),
        (Reading | None, b"null", None),
    ],
)
def test_plain_payloads(kind: Any, data: bytes, value: Any) -> None:
    def handler(payload: kind) -> Any:
        return payload

    assert bind(handler, data) == value


def test_text_and_untyped_payloads_that_do_not_fit() -> None:
    with pytest.raises(InvalidPayload, match="annotate the parameter `bytes`"):
        bind(str_payload, b"\xff")
    with pytest.raises(InvalidPayload, match="annotate the parameter `str` or `bytes`"):
        bind(lambda payload: payload, b"on")


def str_payload(payload: str) -> str:
    return payload


def test_wildcards_are_converted_to_their_annotation() -> None:
    def handler(x: int, event: Event, ctx: Context) -> Any:
        return x, event.subject, ctx

    assert bind(handler) == (7, "a/7", CONTEXT)
    with pytest.raises(InvalidPayload, match=r"^x: expected int, got str"):
        bind(handler, subject="a/b")

    def enum(x: Literal["on", "off"]) -> Any:
        return x

    assert bind(enum, subject="a/on") == "on"
    with pytest.raises(InvalidPayload, match="^x: invalid enum value 'maybe'"):
        bind(enum, subject="a/maybe")


def test_parameters_with_defaults_are_query_parameters() -> None:
    def handler(x: str, verbose: bool = False, n: int = 3, tags: list[str] = [], *, name: str = "?") -> Any:  # noqa: B006
        return x, verbose, n, tags, name

    assert bind(handler, query={}) == ("7", False, 3, [], "?")
    assert bind(handler, query={"verbose": ["true"], "n": ["1", "2"], "tags": ["a", "b"], "name": ["é"]}) == ("7", True, 2, ["a", "b"], "é")
    with pytest.raises(InvalidPayload, match="^n: expected int, got str"):
        bind(handler, query={"n": ["many"]})


def test_what_nothing_fills_is_named() -> None:
    def two(one: Reading, other: Reading) -> None: ...

    def defaulted(payload: Any, dry_run: bool = False) -> None: ...

    def starred(*args: Any, **kwargs: Any) -> None: ...

    text = fault(two)
    assert "test_binding.py" in text
    assert "two: nothing fills parameter 'one' (local a/{x}) or 'other' (local a/{x})" in text
    assert "'dry_run' (local a/{x})" in fault(defaulted)
    assert "nothing can fill *args: Any, **kwargs: Any" in fault(starred)


def test_a_default_that_one_of_the_triggers_fills_is_fine() -> None:
    def handler(payload: Any, y: str = "none") -> Any:
        return y

    with_y, without = local("b/{y}"), local("a")
    function = Function(handler, [with_y, without], Policy())
    args, kwargs = function.binders[with_y].bind(Event("local", "t", "b/1", b"1"), {"y": "1"}, None)
    assert handler(*args, **kwargs) == "1"
    args, kwargs = function.binders[without].bind(Event("local", "t", "a", b"1"), {}, None)
    assert handler(*args, **kwargs) == "none"


def test_a_payload_type_that_json_can_not_fill_is_an_error_at_load() -> None:
    def handler(payload: Callable[[], int]) -> None: ...

    assert "JSON can't fill the payload 'payload' of type" in fault(handler)


def test_direct_invocation_takes_wildcards_as_parameters() -> None:
    @on(local("a/{x}"))
    def handler(reading: Reading, x: int) -> Any:
        return reading, x

    binder = Function(handler, [local("a/{x}")], Policy()).binders[None]
    event = Event("invoke", "t", "handler", b'{"celsius": 2}')
    args, kwargs = binder.bind(event, {"x": "5"}, None)
    assert handler(*args, **kwargs) == (Reading(2), 5)
    with pytest.raises(InvalidPayload, match="--param x=VALUE"):
        binder.bind(event, {}, None)


def test_check_finds_what_bind_would() -> None:
    def handler(reading: Reading, x: int, ctx: Context) -> None: ...

    trigger = local("a/{x}")
    binder = Function(handler, [trigger], Policy()).binders[trigger]
    binder.check(Event("local", "t", "a/1", b'{"celsius": 2}'), {"x": "1"})
    with pytest.raises(InvalidPayload):
        binder.check(Event("local", "t", "a/1", b"{}"), {"x": "1"})


made: list[str] = []


async def pool() -> AsyncIterator[str]:
    made.append("open pool")
    yield "pool"
    made.append("close pool")


@asynccontextmanager
async def session(pool: Annotated[str, Depends(pool, scope="process")], event: Event) -> AsyncIterator[str]:
    made.append("open session")
    yield f"session of {pool} for {event.subject}"
    made.append("close session")


def number() -> Iterator[int]:
    yield 42


async def test_dependencies_nest_are_shared_and_are_closed() -> None:
    made.clear()
    dependencies = Dependencies()
    wanted = {"s": Depends(session), "n": Depends(number), "p": Depends(pool, scope="process")}
    for subject in ("a", "b"):
        async with AsyncExitStack() as stack:
            values = await dependencies.resolve(wanted, stack, Event("local", "t", subject), CONTEXT)
            assert values == {"s": f"session of pool for {subject}", "n": 42, "p": "pool"}
    await dependencies.close()
    assert made == ["open pool", "open session", "close session", "open session", "close session", "close pool"]


async def test_dependencies_can_be_overridden() -> None:
    dependencies = Dependencies()
    dependencies.overrides[number] = lambda: 7
    async with AsyncExitStack() as stack:
        assert await dependencies.resolve({"n": Depends(number)}, stack, Event("local", "t", "a"), CONTEXT) == {"n": 7}


async def test_what_lives_as_long_as_the_process_can_not_have_an_event() -> None:
    def wrong(event: Event) -> None: ...

    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match=r"wrong lives as long as the process: 'event'"):
            await Dependencies().resolve({"x": Depends(wrong, scope="process")}, stack, Event("local", "t", "a"), CONTEXT)
