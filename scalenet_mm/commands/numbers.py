"""The ``type`` of an option that is a number: what is out of its bounds is refused where it is typed."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable

LARGEST = sys.float_info.max


def within(least: float, most: float, said: str, kind: type = int) -> Callable[[str], int | float]:
    """A number of a kind from ``least`` to ``most``; errors say that it must be ``said``."""

    def number(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = float('nan')  # is in no bounds, as one that was typed
        if not least <= value <= most:
            raise ArgumentTypeError(f'must be {said}, got {text or "nothing"}')
        return value

    return number


at_least_one = within(1, LARGEST, 'a whole number from 1 on')
from_zero = within(0, LARGEST, 'a whole number from 0 on')
seed = within(0, 2**32 - 1, 'a whole number from 0 to 4294967295')  # as NumPy takes them
depth_factor = within(1, LARGEST, 'a number from 1 on', float)
above_zero = within(sys.float_info.min, LARGEST, 'a number above 0', float)
seconds = within(0, LARGEST, 'a number from 0 on', float)
share = within(0, 1, 'a number from 0 to 1', float)
