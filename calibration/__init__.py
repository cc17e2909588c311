"""Calibration: a float bundle to an int8 one, with proof of what it cost (docs/calibration.md).

The way of a bundle: `placement` says which operators are quantised, `collect` runs the runtime's own loop over
prompts and counts what flows into them (`observers`, `histogram`), `smooth` and `ranges` turn the counts into scales,
`quantize` writes them into the graph, `judge` measures the result on every backend.
"""
