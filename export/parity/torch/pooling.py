"""What the pooled attention of a new bundle costs, against the checkpoint's own network in torch."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from latentrt.bundle import MANIFEST, Bundle
from latentrt.errors import GateError
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.controlnets.controlnet import ControlNet
from latentrt.export.parity.approximation import approximate, evaluation_of, examinations
from latentrt.export.parity.cases import CaseTable
from latentrt.export.parity.gates import REFERENCE, judgement
from latentrt.export.parity.torch.reference import TorchReference
from latentrt.export.staging import write_atomically

IMAGES = 4


def record_pooling(
    checkpoint: Checkpoint,
    bundle: Bundle,
    controlnets: Sequence[ControlNet],
    *,
    min_sqnr: float | None,
    status: Callable[[str], None],
) -> list[Mapping[str, Any]]:
    """Measures on ONNX Runtime, by a few images as the family's defaults say, writes that to the manifest, and returns
    the rows that failed.

    Args:
        min_sqnr: gate of the network in dB; None is that of a quantised one.
    """
    evaluation = evaluation_of(bundle, (REFERENCE,), CaseTable(bundle.family), images=IMAGES)
    evaluation = evaluation if min_sqnr is None else replace(evaluation, min_sqnr=min_sqnr)
    with closing(TorchReference(checkpoint, controlled=bundle, controlnets=controlnets)) as reference:
        found = examinations(bundle, reference, approximate(bundle, reference), evaluation, status)
    shutil.rmtree(bundle.root / "engines", ignore_errors=True)  # what running it left
    pooling = judgement(found.rows, evaluation)
    write_atomically(bundle.root / MANIFEST, {**bundle.manifest, "pooling": pooling})
    return [row for row in pooling["judged"] if not row["passed"]]


def too_costly(failed: Sequence[Mapping[str, Any]], kept: object) -> GateError:
    """What is said of rows that failed."""
    worst = min(failed, key=lambda row: float(row["value"]))
    return GateError(
        f"pooled attention costs too much in {worst['subject']}, {worst['case']}: {worst['value']:.1f} {worst['unit']}",
        expected=f"at least {worst['limit']:g}",
        hint=f"export without it, or accept less with --min-sqnr; the bundle is kept as {kept}",
    )
