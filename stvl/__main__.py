"""``python -m stvl``."""

import sys

from stvl.cli.main import main

sys.exit(main())
