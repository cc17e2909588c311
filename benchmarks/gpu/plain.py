"""A bundle once more without its engines, by links to the same files.

python -m benchmarks.gpu.plain BUNDLE -o OTHER
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from latentrt.bundle import MANIFEST, Bundle
from latentrt.errors import LatentRTError


def link_bundle(source: Path, output: Path) -> Path:
    """Makes a bundle at `output` of the files of another, which takes no room; one that is there is replaced.

    Raises:
        BundleError: no bundle.
    """
    bundle, staging = Bundle.open(source), output.with_name(output.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in bundle.manifest["files"]:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(bundle.root / name, staging / name)
    shutil.copyfile(bundle.root / MANIFEST, staging / MANIFEST)  # with a time of its own: later than what it is made of
    shutil.rmtree(output, ignore_errors=True)
    return staging.rename(output)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.plain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="BUNDLE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OTHER")
    options = parser.parse_args(arguments)
    try:
        link_bundle(options.source, options.output)
    except LatentRTError as error:
        print(f"plain: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
