"""How the router and its functions are, for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from eventrouter import Plugin, Trigger, hookimpl
from eventrouter.errors import ConfigError

__all__ = ["PrometheusConfig"]


class PrometheusConfig(msgspec.Struct, kw_only=True, frozen=True):
    """path: where they are; empty: nowhere. labels: tags of functions by which metrics of these are labelled, as `tag_NAME`."""

    path: str = "/metrics"
    labels: list[str] = []


def label(tag: str) -> str:
    """Its name as Prometheus allows it."""
    return "tag_" + re.sub(r"[^a-zA-Z0-9_]", "_", tag)


def check(config: PrometheusConfig, pairs: Sequence[tuple[str, Trigger]]) -> None:
    """The path can be one, and each label is another."""
    if config.path and (not re.fullmatch(r"(/[^/{}?#\s]+)+", config.path)):
        raise ConfigError(f'[prometheus] path = {config.path!r}: write a path such as "/metrics"')
    seen: dict[str, str] = {}
    for tag in config.labels:
        if (other := seen.setdefault(label(tag), tag)) != tag or config.labels.count(tag) > 1:
            raise ConfigError(f"[prometheus] labels: {other!r} and {tag!r} would both be the label {label(tag)}; name one of them")


@hookimpl
def eventrouter_plugin() -> Plugin:
    return Plugin(
        name="prometheus",
        source="eventrouter_prometheus.source:PrometheusSource",
        always=True,
        config=PrometheusConfig,
        check=check,
    )
