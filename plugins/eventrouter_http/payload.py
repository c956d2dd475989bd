"""API Gateway's payload format 2.0: a request as the event of a Lambda function."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from eventrouter import Event

_TEXT = ("text/", "application/json", "application/javascript", "application/xml", "application/x-www-form-urlencoded")


def payload_2(event: Event, route: str, captures: Mapping[str, str]) -> dict[str, Any]:
    """route: the route key. Optional fields are absent when empty, as in AWS."""
    asked: Mapping[str, Any] = event.attributes
    headers: dict[str, str] = asked["headers"]
    assert event.time is not None
    host = headers.get("host", "").partition(":")[0]
    made: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route,
        "rawPath": asked["path"],
        "rawQueryString": asked["query"],
        "headers": headers,
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "local",
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "http": {
                "method": asked["method"],
                "path": asked["path"],
                "protocol": asked["protocol"],
                "sourceIp": asked["ip"],
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": event.id,
            "routeKey": route,
            "stage": "$default",
            "time": datetime.fromtimestamp(event.time, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(event.time * 1000),
        },
        "isBase64Encoded": False,
    }
    if "cookie" in headers:
        made["cookies"] = [cookie.strip() for cookie in headers["cookie"].split(";")]
    if asked["query"]:
        joined: dict[str, str] = {}
        for name, value in parse_qsl(asked["query"], keep_blank_values=True):
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        made["queryStringParameters"] = joined
    if captures:
        made["pathParameters"] = dict(captures)
    if event.data:
        made["body"], made["isBase64Encoded"] = _body(event)
    return made


def _body(event: Event) -> tuple[str, bool]:
    kind = event.content_type.partition(";")[0].strip().lower()
    if kind.startswith(_TEXT) or kind.endswith(("+json", "+xml")):
        try:
            return event.data.decode(), False
        except UnicodeDecodeError:
            pass  # it is not what it says it is
    return base64.b64encode(event.data).decode(), True
