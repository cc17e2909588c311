"""Figures for Prometheus: what the service counts, read when they are asked for, and the times of requests."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
_VLLM_LABELS = ("model_name",)
_Row = tuple[str, str, Callable[[Stats], float]]
_Times = tuple[str, str, Callable[[Stats], Spread]]
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
_TIMES: tuple[_Times, ...] = (
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
# What vLLM calls the same, for dashboards and autoscalers that were made for it.
_VLLM_GAUGES: tuple[_Row, ...] = tuple(
    (f"vllm:num_{name.removeprefix('latentrt_')}", text, value) for name, text, value in _GAUGES
)
_VLLM_TIMES = (
    ("vllm:e2e_request_latency_seconds", *_TIMES[0][1:]),
    ("vllm:request_queue_time_seconds", *_TIMES[1][1:]),
)


class ServiceCollector(Collector):
    """What a service's counts come to as metrics.

    Args:
        service: counts.
        vllm: gives requests by the names that vLLM has for them, too.
    """

    def __init__(self, service: Service, *, vllm: bool = False) -> None:
        self._service, self._vllm = service, vllm

    def collect(self) -> Iterator[Metric]:
        by_model = self._service.model_stats()
        yield from _gauges(_GAUGES, by_model, _LABELS)
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
        yield from _times(_TIMES, by_model, _LABELS)
        yield self._loras()
        build = GaugeMetricFamily("latentrt_build_info", "What runs here.", labels=("version", "bundle", "model"))
        for model, info in self._service.models.items():
            build.add_metric((VERSION, info.bundle, model), 1)
        yield build
        if self._vllm:
            yield from _gauges(_VLLM_GAUGES, by_model, _VLLM_LABELS)
            yield from _times(_VLLM_TIMES, by_model, _VLLM_LABELS)
            success = CounterMetricFamily(
                "vllm:request_success", "Jobs that are done.", labels=("finished_reason", *_VLLM_LABELS)
            )
            for model, stats in by_model.items():
                success.add_metric(("stop", model), stats.done)
            yield success

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


def _gauges(rows: Iterable[_Row], by_model: Mapping[str, Stats], labels: Sequence[str]) -> Iterator[Metric]:
    for name, text, value in rows:
        gauge = GaugeMetricFamily(name, text, labels=labels)
        for model, stats in by_model.items():
            gauge.add_metric((model,), value(stats))
        yield gauge


def _times(rows: Iterable[_Times], by_model: Mapping[str, Stats], labels: Sequence[str]) -> Iterator[Metric]:
    for name, text, spread in rows:
        times = HistogramMetricFamily(name, text, labels=labels)
        for model, stats in by_model.items():
            times.add_metric((model,), *_of_times(spread(stats)))
        yield times


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


def routes(service: Service, *, vllm: bool = False) -> APIRouter:
    """`/metrics`; `vllm` as `ServiceCollector` has it."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service, vllm=vllm))
    router = APIRouter(tags=["metrics"])

    def metrics() -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    router.add_api_route("/metrics", metrics, methods=["GET"])
    return router
