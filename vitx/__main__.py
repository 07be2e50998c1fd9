"""`python -m vitx`: the command line."""

import sys

from vitx.cli import main

sys.exit(main())
