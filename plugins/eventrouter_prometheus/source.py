"""`/metrics`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from eventrouter import Endpoint, HttpRequest, Response, Router, Source, Standing
from eventrouter_prometheus import PrometheusConfig, label

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_COUNTERS = (  # as they are called there, here, and what they are
    ("invocations_accepted", "accepted", "Events that were accepted to start the function."),
    ("dead_letters", "dead", "Events that ended as a dead letter."),
    ("throttles", "throttled", "Requests that were turned away, for want of concurrency or over the rate."),
    ("delays", "delayed", "Events that were put off by the rate."),
    ("filtered", "filtered", "Events that `where` kept out."),
    ("starts_denied", "barred", "Starts that the function policy did not allow."),
    ("calls_denied", "denied", "Calls that the role did not allow."),
)


class PrometheusSource(Source[PrometheusConfig]):
    name = "prometheus"

    def __init__(self, config: PrometheusConfig, router: Router) -> None:
        super().__init__(config, router)
        self._labels = ["function", *map(label, config.labels)]

    def endpoints(self) -> Sequence[Endpoint]:
        return [Endpoint("GET", self.config.path, self._answer, tells=True)] if self.config.path else []

    async def _answer(self, request: HttpRequest) -> Response:
        # Not at start, which it would hold up, nor here, where it would hold up everything.
        exposition = await asyncio.to_thread(importlib.import_module, "prometheus_client.exposition")
        encode, kind = exposition.choose_encoder(request.header("accept") or "")
        metrics = [*self._of_functions(await self.router.standings()), *self._of_router()]
        return Response(encode(_Collected(metrics)), 200, {"Content-Type": kind, "Cache-Control": "no-store"})

    def _of_functions(self, standings: Sequence[Standing]) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        labelled = [([it.function, *(it.tags.get(tag, "") for tag in self.config.labels)], it) for it in standings]
        for name, field, told in _COUNTERS:
            counter = CounterMetricFamily(f"eventrouter_{name}", told, labels=self._labels)
            for labels, it in labelled:
                counter.add_metric(labels, getattr(it, field))
            yield counter
        attempts = CounterMetricFamily("eventrouter_attempts", "Attempts that have ended.", labels=[*self._labels, "outcome"])
        for labels, it in labelled:
            for outcome in ("succeeded", "failed", "timed_out"):
                attempts.add_metric([*labels, outcome], getattr(it, outcome))
        yield attempts
        for name, told in (("running", "Attempts under way."), ("waiting", "Events that wait to be run.")):
            gauge = GaugeMetricFamily(f"eventrouter_{name}", told, labels=self._labels)
            for labels, it in labelled:
                gauge.add_metric(labels, getattr(it, name))
            yield gauge

    def _of_router(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

        health = self.router.health()
        live = GaugeMetricFamily("eventrouter_source_live", "Whether a source takes events.", labels=["source"])
        for source, state in health.sources.items():
            live.add_metric([source], state == "live")
        yield live
        yield GaugeMetricFamily("eventrouter_accepting", "Whether the journal takes events.", value=health.journal == "accepting")


class _Collected:
    """What the encoders take for a registry."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
