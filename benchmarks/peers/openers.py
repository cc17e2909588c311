"""How others are opened and timed. Runs in their environments."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentrt.bench.runner import Options, Run, Workload
from latentrt.export.bench_torch import Clock, make_images
from latentrt.output.result import Timings

_HINTS = {"fp32": "f32", "bf16": "bf16"}


@contextmanager
def open_optimum_onnx(options: Options, workload: Workload) -> Iterator[Run]:
    """ORTStableDiffusionPipeline of a folder that `convert` wrote."""
    import onnxruntime
    from diffusers import EulerDiscreteScheduler
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    session = onnxruntime.SessionOptions()
    if workload.threads is not None:
        session.intra_op_num_threads = workload.threads
    pipe = ORTStableDiffusionPipeline.from_pretrained(
        str(options["path"]), session_options=session, safety_checker=None
    )
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    clock = Clock()
    pipe.unet.forward = clock.around(pipe.unet.forward)
    yield lambda: clock.time(lambda: make_images(pipe, workload, output_type="np"))


@contextmanager
def open_genai(options: Options, workload: Workload) -> Iterator[Run]:
    """Text2ImagePipeline at its best: compiled for this size alone."""
    import openvino_genai as genai

    path = Path(str(options["path"]))
    width, height = workload.size
    pipe = genai.Text2ImagePipeline(path)
    scheduler = genai.Scheduler.from_config(
        path / "scheduler" / "scheduler_config.json", genai.Scheduler.Type.EULER_DISCRETE
    )
    pipe.set_scheduler(scheduler)
    pipe.reshape(workload.batch, height, width, workload.guidance)
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[str(options["compute"])],
        "PERFORMANCE_HINT": "LATENCY",
        "CACHE_DIR": str(options["cache_dir"]),
    }
    if workload.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = workload.threads
    pipe.compile("CPU", **settings)
    yield lambda: _timed_genai(pipe, workload)


def _timed_genai(pipe: Any, workload: Workload) -> Timings:
    """By its own metrics, in microseconds; an iteration is the network with guidance and sampler."""
    width, height = workload.size
    pipe.generate(
        workload.prompt,
        width=width,
        height=height,
        num_images_per_prompt=workload.batch,
        num_inference_steps=workload.steps,
        guidance_scale=workload.guidance,
    )
    metrics = pipe.get_performance_metrics()
    texts = metrics.get_text_encoder_infer_duration()
    return Timings(
        text_ms=sum(texts.values()) if isinstance(texts, dict) else float(texts),
        steps_ms=tuple(us / 1e3 for us in metrics.raw_metrics.iteration_durations),
        decode_ms=float(metrics.get_vae_decoder_infer_duration()),
        total_ms=float(metrics.get_generate_duration()),
    )
