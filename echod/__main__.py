"""`python -m echod` is `echod`."""

import sys

from echod.cli import main

sys.exit(main())
