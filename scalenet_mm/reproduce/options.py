"""``key=value`` words as mmengine's command lines read them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmengine.config import DictAction


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """What ``--cfg-options`` makes of its words."""
    p = argparse.ArgumentParser()
    p.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    try:
        return p.parse_args(['--cfg-options', *words]).cfg_options if words else {}
    except RecursionError:
        raise SystemExit(
            '--cfg-options takes key=value and no dict(...): write its keys one by one, a.b.c=value'
        ) from None
