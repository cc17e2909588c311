"""The process in which inputs are tried: `python -m fuzz.child SEED FOLDER SECONDS < KIND START COUNT lines`.

It says on its standard output what it begins, `B index`, and how that ended: `A` accepted, `R` refused, `F` and the
fault. So whoever reads knows at which input it died.
"""

import json
import logging
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

from fuzz.kinds import input_of, kind_of

from latentrt import LatentRTError

MEMORY_BYTES = 8 << 30
"""Of address space; an input that wants more ends in a MemoryError, which is a fault."""


def main() -> None:
    seed, folder, seconds = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        name, start, count = line.split()
        place = folder / name
        place.mkdir(parents=True)
        make, use = kind_of(name).prepare(place)
        say(f"K {name}")
        until = time.monotonic() + seconds if seconds else float("inf")
        for index in range(int(start), int(start) + int(count)):
            if time.monotonic() > until:
                break
            data = input_of(name, make, seed=seed, index=index)
            say(f"B {index}")
            say(outcome(use, data))
        say("D")


def outcome(use, data: bytes) -> str:  # type: ignore[no-untyped-def]
    """One line: how an input ended."""
    try:
        use(data)
    except LatentRTError:
        return "R"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        name = type(error).__name__
        text = "".join(traceback.format_exception(error))[-4000:]
        return f"F {json.dumps([f'{name} in {where(error)}', text])}"
    return "A"


def where(error: BaseException) -> str:
    """The last of our own lines on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tests/" not in frame.filename and "/site-packages/" not in frame.filename]
    ours = [frame for frame in ours if "/lib/python" not in frame.filename] or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
