"""Calibration: a float bundle to an int8 or fp8 one, with proof of what it cost (docs/calibration.md).

The way of a bundle: `placement` says which operators are quantised and `formats` to what, `collect` runs the
runtime's own loop over prompts and counts what flows into them (`observers`, `histogram`), `smooth`, `ranges` and
`scaling` turn the counts into scales, `layers` measures each operator and `budget` returns some to float, `quantize`
writes the graph, and `evaluation` measures the result on every backend.
"""
