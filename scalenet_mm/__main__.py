"""``python -m scalenet_mm`` is ``scalenet``."""

from .commands.main import process

process()
