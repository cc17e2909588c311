"""Bundles in 16 bit against float32 torch: signal-to-noise ratios instead of differences, and their gates."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from latentrt.arrays import to_host
from latentrt.backends import BACKENDS, open_engine
from latentrt.bundle import Bundle
from latentrt.export.convert.precision import FLOAT32
from latentrt.export.parity.components import ComponentRun
from latentrt.export.parity.measurement import Measurement
from latentrt.export.parity.metrics import signal_to_noise_db
from latentrt.graph import GraphFile

# dB of every output of a component, worst case; a guided step multiplies the network's error and is reported only.
COMPONENT_LIMITS_DB = {"fp16": 45.0, "bf16": 33.0}
# dB of PSNR, median over 16 seeds. The image of a bf16 bundle is reported, not judged.
MEDIAN_LIMITS_DB: Mapping[str, float | None] = {"fp16": 35.0, "bf16": None}


def lowest_precision(bundle: Bundle) -> str:
    """The precision whose gate the images of a bundle must pass."""
    found = {part.precision for part in bundle.components.values()}
    return next(name for name in ("bf16", "fp16", *found, FLOAT32) if name in found)


def able(backends: Sequence[str], bundle: Bundle) -> list[str]:
    """The backends that run a bundle's number formats on a CPU."""
    graphs = [part.graph for part in bundle.components.values()]
    unable = {row.name for row in BACKENDS if row.cannot_run(graphs) is not None}
    return [name for name in backends if name not in unable]


def component_ratios(
    graph: GraphFile,
    runs: Sequence[ComponentRun],
    *,
    backend: str,
    device: str | None = None,
    compute: str | None = None,
    cache_dir: Path | None = None,
) -> Iterator[Measurement]:
    """dB of the worst output of a graph in 16 bit, in each case."""
    with closing(open_engine(graph, backend=backend, device=device, compute=compute, cache_dir=cache_dir)) as engine:
        for run in runs:
            found = engine.run(run.feed)
            worst = min(signal_to_noise_db(to_host(found[name]), value) for name, value in run.outputs.items())
            yield Measurement(
                subject=f"component {graph.component}",
                case=run.case,
                backend=backend,
                value=worst,
                limit=None if run.case.startswith("guided") else COMPONENT_LIMITS_DB[str(graph.precision)],
                unit="dB PSNR" if graph.component == "decoder" else "dB SQNR",
                higher_is_better=True,
            )
