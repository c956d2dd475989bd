"""The router's own events: what it is told of itself, in the shape of events on the bus."""

from __future__ import annotations

from typing import Any

import msgspec

from eventrouter import Event, Notice
from eventrouter_events.shapes import OWN, make

_FUNCTION = "arn:aws:lambda:local:000000000000:function:"


def event_of_notice(notice: Notice, now: float) -> Event:
    """now: seconds since 1970."""
    kind, detail, resources = _describe(notice)
    return make("default", OWN, kind, msgspec.json.encode(detail), resources=resources, time=now, notice=True)


def _describe(notice: Notice) -> tuple[str, dict[str, Any], list[str]]:
    told = notice.detail
    if notice.kind == "dead":
        kind, resources = "Function Invocation Dead Lettered", [_FUNCTION + notice.about]
        detail = {
            "functionName": notice.about,
            "requestId": told["id"],
            "reason": told["reason"],
            "errorType": told["error_type"],
            "errorMessage": told["error_message"],
            "attempts": told["attempts"],
            "event": told["event"],
        }
    elif notice.kind == "throttled":
        kind, resources = "Function Throttled", [_FUNCTION + notice.about]
        detail = {"functionName": notice.about, "throttles": told["throttles"], "concurrency": told["concurrency"]}
    else:
        kind, resources = f"{notice.kind.capitalize()} State Change", []
        detail = {"state": {"value": told["state"].upper(), "reason": told["reason"]}}
        if notice.about:
            detail[f"{notice.kind}Name"] = notice.about
    return kind, detail, resources
