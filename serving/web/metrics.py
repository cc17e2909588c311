"""Figures for Prometheus: what the service counts, read when they are asked for, and the times of requests."""

from collections import Counter
from collections.abc import Callable, Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from latentrt.environment.version import VERSION
from latentrt.serving.jobs import JobState
from latentrt.serving.service import Service
from latentrt.serving.stats import BOUNDS_S, Spread, Stats

_SIZES = (1, 2, 4, 8, 16, 32, 64)
_LABELS = ("model",)
_Row = tuple[str, str, Callable[[Stats], float]]
_COUNTERS: tuple[_Row, ...] = (
    ("latentrt_padding_slots", "Rows of engine calls that were padding.", lambda stats: stats.padded),
    ("latentrt_steps", "Steps of single images.", lambda stats: stats.rows),
    ("latentrt_images", "Images that were made.", lambda stats: stats.images),
    ("latentrt_slo_attained", "Jobs that were done before they were due.", lambda stats: stats.in_time),
    ("latentrt_cancelled", "Jobs that were cancelled.", lambda stats: stats.cancelled),
    ("latentrt_engine_faults", "Engine calls that failed.", lambda stats: stats.faults),
    ("latentrt_restarts", "How often engines were begun anew after a fault.", lambda stats: stats.restarts),
)
_GAUGES: tuple[_Row, ...] = (
    ("latentrt_requests_running", "Jobs that are being made.", lambda stats: stats.running),
    ("latentrt_requests_waiting", "Jobs that wait.", lambda stats: stats.queued),
)
_TIMES: tuple[tuple[str, str, Callable[[Stats], Spread]], ...] = (
    ("latentrt_request_latency_seconds", "From a job's submission to its end.", lambda stats: stats.latency),
    ("latentrt_request_queue_seconds", "From a job's submission to its start.", lambda stats: stats.wait),
    (
        "latentrt_time_to_first_step_seconds",
        "From a job's submission to its first step.",
        lambda stats: stats.first_step,
    ),
    ("latentrt_step_duration_seconds", "Of an engine call of the step.", lambda stats: stats.step),
    ("latentrt_encode_seconds", "Of a job's texts and photos in the encoders.", lambda stats: stats.encode),
    ("latentrt_decode_seconds", "Of a job's images in the decoder.", lambda stats: stats.decode),
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
        for name, text, spread in _TIMES:
            times = HistogramMetricFamily(name, text, labels=_LABELS)
            for model, stats in by_model.items():
                times.add_metric((model,), *_of_times(spread(stats)))
            yield times
        yield self._loras()
        build = GaugeMetricFamily("latentrt_build_info", "What runs here.", labels=("version", "model"))
        for model in by_model:
            build.add_metric((VERSION, model), 1)
        yield build

    def _loras(self) -> Metric:
        """How many jobs want each LoRA, running and waiting."""
        wanted = GaugeMetricFamily(
            "latentrt_lora_requests_info", "Jobs that want a LoRA.", labels=("lora", "state", "model")
        )
        jobs = [job for job in self._service.jobs() if not job.state.final]
        counted = Counter((name, job.state, job.model) for job in jobs for name, _ in job.loras)
        for model, info in self._service.models.items():
            for name in info.loras:
                for state in (JobState.RUNNING, JobState.QUEUED):
                    wanted.add_metric((name, str(state), model), counted[name, state, model])
        return wanted


def _of_times(spread: Spread) -> tuple[list[tuple[str, float]], float]:
    below = [float(sum(spread.counts[: index + 1])) for index in range(len(spread.counts))]
    return list(zip([*map(str, BOUNDS_S), "+Inf"], below, strict=True)), spread.total_s


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
