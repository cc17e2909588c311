"""`latentrt bench --profile`: what the nodes of a bundle's graphs take."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from latentrt.bench.figures import busy_warning
from latentrt.bench.machine import PACKAGES, provenance
from latentrt.bench.peak import measure_peaks
from latentrt.bench.profile import peak_precisions, profile_bundle, with_peaks
from latentrt.bench.profile_report import as_csv, heading, peak_line, render, type_rows
from latentrt.bench.runner import Candidate, Workload
from latentrt.bundle import Bundle
from latentrt.cli.console import Console, table
from latentrt.errors import RequestError
from latentrt.files.atomic import write_whole


def run_profile(
    options: argparse.Namespace,
    bundle: Bundle,
    candidates: Sequence[Candidate],
    workload: Workload,
    console: Console,
) -> int:
    """Profiles each candidate, one after the other, and measures the peaks of what they compute in."""
    where = provenance(bundle, packages=PACKAGES)
    busy = busy_warning(where["load_average"])
    if busy is not None:
        console.note(busy)
    profiles = []
    for candidate in candidates:
        backend = candidate.options["backend"]
        assert backend is not None
        found = profile_bundle(
            bundle,
            workload,
            backend=backend,
            compute=candidate.options["compute"],
            progress=partial(_progress, console, candidate.name),
        )
        profiles += [{"name": candidate.name, **profile} for profile in found]
    console.status("measuring what this machine can multiply at most")
    peaks = measure_peaks(peak_precisions(profiles), threads=workload.threads)
    document: dict[str, Any] = {
        "provenance": where,
        "workload": asdict(workload),
        "warnings": [] if busy is None else [busy],
        "peaks": [asdict(peak) for peak in peaks.values()],
        "profiles": [with_peaks(profile, peaks) for profile in profiles],
    }
    if options.csv is not None:
        write_whole(options.csv, as_csv(document["profiles"]).encode())
    if options.report is not None:
        write_whole(options.report, render(document, title=f"latentrt bench --profile {bundle.name}").encode())
    console.result(_report(document), document)
    return 0


def _progress(console: Console, name: str, text: str) -> None:
    console.status(f"{name}: {text}")


def check_alone(options: argparse.Namespace) -> None:
    """Raises RequestError where something is asked for that a profile does not look at."""
    if options.against is not None:
        raise RequestError("--profile and --against", expected="one of them: a profile is of this bundle alone")
    if len(options.batch) > 1 or len(options.threads) > 1:
        raise RequestError("--profile of a sweep", expected="one batch size and one number of threads")


def _report(document: Mapping[str, Any]) -> str:
    where, work = document["provenance"], document["workload"]
    width, height = work["size"]
    parts = []
    for profile in document["profiles"]:
        parts += [heading(profile), table(type_rows(profile), left=2), ""]
    parts += [
        f"{width}x{height}, batch {work['batch']}, guidance {work['guidance']:g}; means of all runs after a warm-up,"
        " which noting each node makes slower",
        peak_line(document["peaks"]),
        f"{where['cpu']}, {where['cores']} cores, load average {where['load_average']} before",
        *document["warnings"],
    ]
    return "\n".join(parts)
