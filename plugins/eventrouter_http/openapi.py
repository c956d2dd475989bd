"""The routes as an OpenAPI 3.1 document, made from triggers and the handlers' signatures."""

from __future__ import annotations

import collections.abc
import inspect
import re
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import msgspec

from eventrouter import Binding, Response
from eventrouter_http import HttpConfig, HttpTrigger
from eventrouter_http.auth import Authorizer, Jwt

_EMPTY = inspect.Parameter.empty
_ANY = ("get", "post", "put", "patch", "delete")
_PLACE = "#/components/schemas/{name}"
_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncIterable, collections.abc.AsyncGenerator,
            collections.abc.Iterator, collections.abc.Generator)  # fmt: skip
_PROBLEM = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"}},
}
Schema = dict[str, Any]


def document(title: str, prefix: str, bindings: Sequence[Binding], config: HttpConfig) -> dict[str, Any]:
    """prefix: of the stage. `$default` has no path that could be told."""
    shown = [binding for binding in bindings if isinstance(binding.trigger, HttpTrigger) and binding.trigger.pattern]
    schemas = _Schemas()
    answers = [_returned(binding) for binding in shown]
    for binding, (_, kind) in zip(shown, answers, strict=True):
        for _, parameter in binding.function.binders[binding.trigger].takes.values():
            schemas.want(parameter.annotation)
        schemas.want(kind)
    schemas.settle()
    paths: dict[str, dict[str, Any]] = {}
    shapes: dict[str, tuple[str, tuple[str, ...]]] = {}
    taken: set[str] = set()
    schemes = _Schemes(config)
    for binding, answer in zip(shown, answers, strict=True):
        trigger = binding.trigger
        assert isinstance(trigger, HttpTrigger)
        template = trigger.pattern.replace("+}", "}")
        known = shapes.setdefault(re.sub(r"\{\w+}", "{}", template), (template, trigger.names))
        path = paths.setdefault(known[0], {})  # paths that differ in names alone are one
        renamed = dict(zip(trigger.names, known[1], strict=True))
        for method in _ANY if trigger.method == "ANY" else (trigger.method.lower(),):
            if method in path and trigger.method == "ANY":
                continue  # a method's own route comes before
            id = binding.function.name
            path[method] = {"operationId": f"{id}_{method}" if id in taken else id, **_operation(binding, answer, schemas, schemes)}
            for parameter in path[method].get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["name"] = renamed[parameter["name"]]
            taken.add(id)
    components: dict[str, Any] = {"schemas": {**schemas.components, "Problem": _PROBLEM}}
    if schemes.known:
        components["securitySchemes"] = schemes.known
    made = {"openapi": "3.1.0", "info": {"title": title, "version": "1"}, "paths": paths, "components": components}
    return {**made, "servers": [{"url": prefix}]} if prefix else made


class _Schemas:
    """JSON Schemas of types, asked for in one go so that each has one name."""

    def __init__(self) -> None:
        self._wanted: dict[int, Any] = {}
        self._made: dict[int, Schema] = {}
        self.components: dict[str, Any] = {}

    def want(self, kind: Any) -> None:
        self._wanted[id(kind)] = kind

    def settle(self) -> None:
        plain = {}
        for key, kind in self._wanted.items():
            if (model := _pydantic_schema(kind)) is not None:
                self.components.update(model.pop("$defs", {}))
                self._made[key] = model
                continue
            try:
                msgspec.json.schema_components((kind,))
                plain[key] = kind
            except (TypeError, NotImplementedError):  # of what JSON can't say, nothing is said
                self._made[key] = {}
        schemas, components = msgspec.json.schema_components(tuple(plain.values()), ref_template=_PLACE)
        self._made.update(zip(plain, schemas, strict=True))
        self.components.update(components)

    def of(self, kind: Any) -> Schema:
        return dict(self._made.get(id(kind), {}))


def _pydantic_schema(kind: Any) -> Schema | None:
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not (isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)):
        return None
    made: Schema = pydantic.TypeAdapter(kind).json_schema(ref_template=_PLACE.replace("name", "model"))
    nested = made.pop("$defs", {})
    return {"$ref": _PLACE.format(name=kind.__name__), "$defs": {**nested, kind.__name__: made}}


class _Schemes:
    """How callers say who they are."""

    def __init__(self, config: HttpConfig) -> None:
        self.known: dict[str, Any] = {}
        self._config = config

    def of(self, trigger: HttpTrigger) -> list[dict[str, list[str]]]:
        """The `security` of a route; empty: it is open."""
        auth = trigger.auth_in(self._config)
        if auth is None:
            return []
        scheme: dict[str, Any] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
        name: str = "api-key"
        if isinstance(auth, Jwt):
            name, scheme = "jwt", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": f"A token of {auth.issuer}"}
        elif isinstance(auth, Authorizer):
            name = re.sub(r"[^\w.-]", "_", auth.function)
            place, _, header = (auth.identity or ("$request.header.Authorization",))[0].removeprefix("$request.").partition(".")
            scheme |= {"in": "query" if place == "querystring" else "header", "name": header}
        while self.known.setdefault(name, scheme) != scheme:
            name += "_"
        return [{name: list(auth.scopes) if isinstance(auth, Jwt) else []}]


def _operation(binding: Binding, answer: tuple[str, Any], schemas: _Schemas, schemes: _Schemes) -> dict[str, Any]:
    function, trigger = binding.function, binding.trigger
    assert isinstance(trigger, HttpTrigger)
    made: dict[str, Any] = {}
    text = function.policy.description or inspect.getdoc(function.handler) or ""
    if text:
        made["summary"], _, rest = text.partition("\n")
        if rest.strip():
            made["description"] = rest.strip()
    takes = function.binders[trigger].takes
    parameters = [_parameter(kind, p, schemas) for kind, p in takes.values() if kind != "payload"]
    told = {parameter["name"] for parameter in parameters}
    untold = [name for name in trigger.names if name not in told]
    parameters += [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in untold]
    if parameters:
        made["parameters"] = parameters
    bodies = [p for kind, p in takes.values() if kind == "payload"]
    if bodies:
        made["requestBody"] = {"required": True, "content": _content(bodies[0].annotation, schemas)}
    if security := schemes.of(trigger):
        made["security"] = security
    made["responses"] = _responses(binding, answer, schemas, bool(takes))
    return made


def _parameter(kind: str, p: inspect.Parameter, schemas: _Schemas) -> dict[str, Any]:
    schema = {"type": "string"} if p.annotation is _EMPTY else schemas.of(p.annotation)
    if kind == "wildcard":
        return {"name": p.name, "in": "path", "required": True, "schema": schema}
    try:
        schema["default"] = msgspec.to_builtins(p.default)
    except (TypeError, NotImplementedError):
        pass  # a default that JSON can't say is the handler's own affair
    return {"name": p.name, "in": "query", "schema": schema}


def _content(kind: Any, schemas: _Schemas) -> dict[str, Any]:
    if kind is bytes:
        return {"application/octet-stream": {}}
    if kind is str:
        return {"text/plain": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": {} if kind in (_EMPTY, Any) else schemas.of(kind)}}


def _returned(binding: Binding) -> tuple[str, Any]:
    """How a handler answers, and with what: "whole", "stream", "nothing", or "" for what can't be known."""
    function = binding.function
    hint = typing.get_type_hints(function.handler, include_extras=True).get("return", _EMPTY)
    if function.is_lambda or hint in (_EMPTY, Any, Response):
        return "", Any
    if hint is type(None):
        return "nothing", Any
    if get_origin(hint) in _STREAMS:
        return "stream", get_args(hint)[0]
    if get_origin(hint) in (types.UnionType, typing.Union) and Response in get_args(hint):
        return "", Any
    return "whole", hint


def _responses(binding: Binding, answer: tuple[str, Any], schemas: _Schemas, checked: bool) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": _PLACE.format(name="Problem")}}}
    how, kind = answer
    made: dict[str, Any] = {}
    if binding.trigger.mode == "event":
        schema = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
        made["202"] = {"description": "It is on disk, and runs", "content": {"application/json": {"schema": schema}}}
    elif how == "nothing":
        made["204"] = {"description": "Done"}
    elif how == "whole":
        made["200"] = {"description": "OK", "content": _content(kind, schemas)}
    elif how == "stream":
        content = _content(kind, schemas)
        made["200"] = {"description": "OK, in chunks", "content": {name.replace("/json", "/jsonl"): said for name, said in content.items()}}
    else:
        made["200"] = {"description": "OK"}
    if checked:
        made["400"] = {"description": "What was sent does not fit", "content": problem}
    made["default"] = {"description": "An error", "content": problem}
    return made
