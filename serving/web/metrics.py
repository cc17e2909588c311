"""Figures for Prometheus: what the service counts, read when they are asked for, and the times of requests."""

from collections.abc import Callable, Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from latentrt.environment.version import VERSION
from latentrt.serving.service import Service
from latentrt.serving.stats import Stats

_SIZES = (1, 2, 4, 8, 16, 32, 64)
_LABELS = ("model",)
_Row = tuple[str, str, Callable[[Stats], float]]
_COUNTERS: tuple[_Row, ...] = (
    ("latentrt_padding_slots", "Rows of engine calls that were padding.", lambda stats: stats.padded),
    ("latentrt_steps", "Steps of single images.", lambda stats: stats.rows),
    ("latentrt_step_duration_seconds", "Seconds in engine calls of the step.", lambda stats: stats.step_s),
    ("latentrt_encode_seconds", "Seconds in text encoders and the encoder.", lambda stats: stats.encode_s),
    ("latentrt_decode_seconds", "Seconds in the decoder.", lambda stats: stats.decode_s),
    ("latentrt_cancelled", "Jobs that were cancelled.", lambda stats: stats.cancelled),
    ("latentrt_engine_faults", "Engine calls that failed.", lambda stats: stats.faults),
    ("latentrt_restarts", "How often engines were begun anew after a fault.", lambda stats: stats.restarts),
)
_GAUGES: tuple[_Row, ...] = (
    ("latentrt_requests_running", "Jobs that are being made.", lambda stats: stats.running),
    ("latentrt_requests_waiting", "Jobs that wait.", lambda stats: stats.queued),
)
_ENDS = ("done", "failed", "cancelled")


class ServiceCollector(Collector):
    """What a service's counts come to as metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        by_model = self._service.model_stats()
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for model, stats in by_model.items():
                gauge.add_metric((model,), value(stats))
            yield gauge
        for name, text, value in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for model, stats in by_model.items():
                counter.add_metric((model,), value(stats))
            yield counter
        ends = CounterMetricFamily("latentrt_jobs", "Jobs that are over.", labels=("status", "model"))
        sizes = HistogramMetricFamily("latentrt_step_batch_size", "Images in an engine call.", labels=_LABELS)
        for model, stats in by_model.items():
            for end in _ENDS:
                ends.add_metric((end, model), getattr(stats, end))
            sizes.add_metric((model,), *_histogram(stats))
        yield ends
        yield sizes
        build = GaugeMetricFamily("latentrt_build_info", "What runs here.", labels=("version", "model"))
        for model in by_model:
            build.add_metric((VERSION, model), 1)
        yield build


def _histogram(stats: Stats) -> tuple[list[tuple[str, float]], float]:
    """Cumulated buckets, and the sum of all values."""
    below = [
        (str(float(size)), float(sum(calls for images, calls in stats.batches.items() if images <= size)))
        for size in _SIZES
    ]
    return [*below, ("+Inf", float(stats.calls))], float(stats.rows)


def routes(service: Service) -> APIRouter:
    """`/metrics`."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    router = APIRouter(tags=["metrics"])

    def metrics() -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    router.add_api_route("/metrics", metrics, methods=["GET"])
    return router
