"""What Lambda functions get: of a webhook, the request as API Gateway's payload 2.0; of a poll, an event as on EventBridge."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote

import msgspec

from eventrouter import Event, HttpRequest


def attributes_of(request: HttpRequest) -> dict[str, Any]:
    """What an event keeps of its request: names of headers in small letters, values of those that repeat joined."""
    headers: dict[str, str] = {}
    for name, value in request.headers:
        key = name.lower()
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    return {"method": request.method, "query": request.query, "headers": headers, "ip": request.remote}


def request_event(event: Event, pattern: str, captures: dict[str, str]) -> dict[str, Any]:
    """pattern: the endpoint's path. Optional fields are absent when empty, as in AWS."""
    asked = event.attributes
    headers: dict[str, str] = asked["headers"]
    method, path, route = asked["method"], quote(event.subject, safe="/:@!$&'()*+,;=~"), f"{asked['method']} {pattern}"
    host = headers.get("host", "")
    host = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    time = event.time or 0.0
    made: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": asked["query"],
        "headers": headers,
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "local",
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": asked["ip"],
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": event.id,
            "routeKey": route,
            "stage": "$default",
            "time": datetime.fromtimestamp(time, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(time * 1000),
        },
        "isBase64Encoded": False,
    }
    if "cookie" in headers:
        made["cookies"] = [cookie.strip() for cookie in headers["cookie"].split(";") if cookie.strip()]
    if parameters := parse_qsl(asked["query"], keep_blank_values=True):
        joined: dict[str, str] = {}
        for name, value in parameters:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        made["queryStringParameters"] = joined
    if captures:
        made["pathParameters"] = captures
    if event.data:
        made["body"], made["isBase64Encoded"] = event.text_or_base64()
    return made


def poll_event(event: Event) -> dict[str, Any]:
    try:
        detail = event.json()
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = event.data.decode(errors="replace")
    return {
        "version": "0",
        "id": event.id,
        "detail-type": "Poll Item" if event.type == "poll.item" else "Poll Change",
        "source": f"poll.{event.attributes['host']}",
        "account": "000000000000",
        "time": datetime.fromtimestamp(event.time or 0.0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": "local",
        "resources": [event.subject],
        "detail": detail,
    }
