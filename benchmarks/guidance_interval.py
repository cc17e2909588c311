"""What guidance in a part of the run saves, and what it changes.

    python benchmarks/guidance_interval.py BUNDLE [--intervals 0,1 0.2,0.8 0,0.5] [--size 512x512] [--steps 20]

Every interval runs once to compile, then TURNS times in turn with the others; the fastest counts. The last column is
the difference between its picture and that of the first interval.
"""

import argparse

import numpy as np

import latentrt
from latentrt.cli.arguments import floats, size

TURNS = 3
PROMPT = "a red circle on a white background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--intervals", type=floats, nargs="+", default=[(0, 1), (0.2, 0.8), (0, 0.5)], metavar="A,B")
    parser.add_argument("--size", type=size, metavar="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    best: dict[tuple[float, ...], float] = {}
    pictures = {}
    with latentrt.load(options.bundle, backend=options.backend) as pipe:
        print(f"{pipe.backend}, {options.steps} steps, batch 1")
        for turn in range(1 + TURNS):
            for interval in options.intervals:
                request = latentrt.Request(
                    PROMPT,
                    seed=7,
                    size=options.size,
                    steps=options.steps,
                    guidance=latentrt.Guidance(interval=interval),
                )
                made = pipe.run(request)
                pictures[interval] = made.images[0].astype(float)
                seconds = sum(made.timings.steps_ms) / 1e3
                best[interval] = seconds if turn <= 1 else min(seconds, best[interval])
    first = options.intervals[0]
    for interval, seconds in best.items():
        error = np.square(pictures[interval] - pictures[first]).mean()
        psnr = f"{10 * np.log10(255**2 / error):.1f} dB" if error else "the same"
        print(f"{interval[0]:g} to {interval[1]:g}: {seconds:6.2f} s, {seconds / best[first]:.2f} of the first, {psnr}")


if __name__ == "__main__":
    main()
