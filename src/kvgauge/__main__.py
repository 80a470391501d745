"""`python -m kvgauge` is `kvgauge`."""

import sys

from kvgauge.cli.main import main

sys.exit(main())
