"""API Gateway's payload formats 2.0 and 1.0, and what an authorizer function gets: a request as a Lambda function's event."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from eventrouter import Event

API = "local"
ACCOUNT = "000000000000"
_IDENTITY = (
    "accessKey", "accountId", "caller", "cognitoAuthenticationProvider", "cognitoAuthenticationType", "cognitoIdentityId",
    "cognitoIdentityPoolId", "principalOrgId", "user", "userArn",
)  # fmt: skip


def payload_2(event: Event, route: str, captures: Mapping[str, str]) -> dict[str, Any]:
    """route: the route key. Optional fields are absent when empty, as in AWS."""
    asked: Mapping[str, Any] = event.attributes
    headers: dict[str, str] = asked["headers"]
    assert event.time is not None
    host = _host(headers)
    context: dict[str, Any] = {
        "accountId": ACCOUNT,
        "apiId": API,
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
        "stage": asked.get("stage", "$default"),
        "time": _time(event.time),
        "timeEpoch": int(event.time * 1000),
    }
    if "authorizer" in asked:
        context["authorizer"] = _authorizer_2(asked["authorizer"])
    made: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route,
        "rawPath": asked["path"],
        "rawQueryString": asked["query"],
        "headers": headers,
        "requestContext": context,
        "isBase64Encoded": False,
    }
    if "cookie" in headers:
        made["cookies"] = cookies(headers["cookie"])
    if asked["query"]:
        joined: dict[str, str] = {}
        for name, value in parse_qsl(asked["query"], keep_blank_values=True):
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        if joined:
            made["queryStringParameters"] = joined
    if captures:
        made["pathParameters"] = dict(captures)
    if "stage_variables" in asked:
        made["stageVariables"] = asked["stage_variables"]
    if event.data:
        made["body"], made["isBase64Encoded"] = event.text_or_base64()
    return made


def payload_1(event: Event, route: str, captures: Mapping[str, str]) -> dict[str, Any]:
    """As HTTP APIs make it, with names of headers in small letters. Optional fields are null when empty.

    Of a header that comes more than once `headers` has the last value, of a query parameter the first, as documented.
    """
    asked: Mapping[str, Any] = event.attributes
    headers: dict[str, str] = asked["headers"]
    repeated: Mapping[str, list[str]] = asked.get("repeated", {})
    assert event.time is not None
    parameters: dict[str, list[str]] = {}
    for name, value in parse_qsl(asked["query"], keep_blank_values=True):
        parameters.setdefault(name, []).append(value)
    host = _host(headers)
    resource = route.partition(" ")[2] or route
    authorizer = asked.get("authorizer", {})
    identity = {**dict.fromkeys(_IDENTITY), "sourceIp": asked["ip"], "userAgent": headers.get("user-agent", "")}
    if "apiKey" in authorizer:
        identity |= {"apiKey": headers.get("x-api-key"), "apiKeyId": authorizer["apiKey"]["name"]}
    body, is_base64 = event.text_or_base64() if event.data else (None, False)
    return {
        "version": "1.0",
        "resource": resource,
        "path": asked["path"],
        "httpMethod": asked["method"],
        "headers": {**headers, **{name: values[-1] for name, values in repeated.items()}},
        "multiValueHeaders": {name: repeated.get(name) or [value] for name, value in headers.items()},
        "queryStringParameters": {name: values[0] for name, values in parameters.items()} or None,
        "multiValueQueryStringParameters": parameters or None,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": API,
            "authorizer": _authorizer_1(authorizer),
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "extendedRequestId": event.id,
            "httpMethod": asked["method"],
            "identity": identity,
            "path": asked["path"],
            "protocol": asked["protocol"],
            "requestId": event.id,
            "requestTime": _time(event.time),
            "requestTimeEpoch": int(event.time * 1000),
            "resourceId": route,
            "resourcePath": resource,
            "stage": asked.get("stage", "$default"),
        },
        "pathParameters": dict(captures) or None,
        "stageVariables": asked.get("stage_variables"),
        "body": body,
        "isBase64Encoded": is_base64,
    }


def authorizer_event(event: Event, route: str, captures: Mapping[str, str], arn: str, identity: list[str]) -> dict[str, Any]:
    """What an authorizer function gets: payload 2.0 without a body, and who asks. arn: of the route."""
    made = payload_2(event, route, captures)
    for absent in ("body", "isBase64Encoded"):
        made.pop(absent, None)
    return {**made, "type": "REQUEST", "routeArn": arn, "identitySource": identity}


def cookies(header: str) -> list[str]:
    return [cookie.strip() for cookie in header.split(";") if cookie.strip()]


def _host(headers: Mapping[str, str]) -> str:
    host = headers.get("host", "")
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")


def _authorizer_2(found: Mapping[str, Any]) -> dict[str, Any]:
    if "jwt" not in found:
        return {name: found[name] for name in ("lambda", "apiKey") if name in found}
    return {"jwt": {"claims": _as_text(found["jwt"]["claims"]), "scopes": found["jwt"]["scopes"]}}


def _authorizer_1(found: Mapping[str, Any]) -> dict[str, Any]:
    if "jwt" in found:
        return {"claims": _as_text(found["jwt"]["claims"]), "scopes": found["jwt"]["scopes"]}
    if "lambda" in found:
        return {**({"principalId": found["principalId"]} if "principalId" in found else {}), **(found["lambda"] or {})}
    return {"claims": None, "scopes": None}


def _as_text(claims: Mapping[str, Any]) -> dict[str, str]:
    """API Gateway hands on claims as text; lists as `[a b]`."""
    return {name: _claim(value) for name, value in claims.items()}


def _claim(value: Any) -> str:
    if isinstance(value, list):
        return f"[{' '.join(map(_claim, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
