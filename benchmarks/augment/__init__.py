"""What `latentrt augment` makes of a dataset whose truth is known: coloured shapes, drawn by the example checkpoint.

    python -m benchmarks.augment                       # all of it, minutes; writes benchmarks/results
    python -m benchmarks.augment --pictures 10 --steps 60 --results build/augment-study     # a look at it

1. 50 rendered scenes with boxes for training, 200 for validation (`pictures`).
2. Every mode makes a copy of each training picture; a detector that knows the 50 alone filters them (`neighbour`).
3. Ultralytics' loader reads what is written (`loader`).
4. The checker of examples/shapes, which knows the outlines, says whether labels that were kept are true (`judge`).
5. A small detector is trained on the real pictures, and on those and the kept ones, with three seeds each and equally
   many steps, and is measured on the validation pictures (`detector`).
"""
