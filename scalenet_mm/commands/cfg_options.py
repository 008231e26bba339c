"""``--cfg-options``: mmengine's parser, which leaves text as it was typed and whose errors are told in a sentence."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mmengine.config import DictAction


class CfgOptions(DictAction):
    """The ``action`` of an option that takes ``key=value``.

    mmengine's own removes spaces from every value, and makes a list of a path with a comma; here a text is kept as it
    was typed: what does not begin with a bracket, and has no comma or stands in quotation marks. A list is read as
    Python writes it (``key="['a b','c']"``), else as mmengine does (``key=[a,b]``).
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        text = val.strip('\'"')
        quoted = text != val
        if bracketed := text.startswith(('(', '[')):
            with suppress(ValueError, SyntaxError):
                if isinstance(read := ast.literal_eval(text), (list, tuple)):
                    return read
        if bracketed or (',' in text and not quoted):
            return DictAction._parse_iterable(val)
        return text if quoted else DictAction._parse_int_float_bool(val)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Sequence[str], *more):
        for word in values:
            try:
                if re.match(r'[^=]+=["\']?dict\(', word):
                    raise ValueError(word)
                super().__call__(parser, namespace, [word], *more)
            except (ValueError, AssertionError, RecursionError):  # no `=`, an open bracket, parentheses
                raise argparse.ArgumentError(
                    self,
                    f'takes key=value, a list as key="[a,b]" and no dict(...), whose keys are written one by one '
                    f'(model.backbone.scale.growth=stack model.backbone.scale.new_layers=1), got {word}',
                ) from None


def setting(key: str, value: object) -> str:
    """The ``key=value`` of a text, such as a path, as ``CfgOptions`` reads it back."""
    return f'{key}="{value}"' if ',' in str(value) else f'{key}={value}'
