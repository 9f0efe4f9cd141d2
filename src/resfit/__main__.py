"""Run the command line with `python -m resfit`."""

import sys

from resfit.cli import main

sys.exit(main())
