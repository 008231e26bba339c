"""``python -m scalenet_mm`` is ``scalenet``."""

import sys

from .commands.main import main

sys.exit(main())
