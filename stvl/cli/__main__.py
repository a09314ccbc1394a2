"""``python -m stvl.cli``."""

import sys

from stvl.cli.main import main

sys.exit(main())
