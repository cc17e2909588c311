"""Samplers as coefficient tables.

Every sampler here is a linear state-space system driven by what the network denoises, so that a run is a
table of coefficients, computed once on the host in float64: docs/samplers.md has the maths.
"""

from latentrt.samplers.table import StepTable, sampler_names, schedule_names, step_table

__all__ = ["StepTable", "sampler_names", "schedule_names", "step_table"]
