"""`python -m latentrt.cli`, the same as `latentrt`."""

import sys

from latentrt.cli import main

sys.exit(main())
