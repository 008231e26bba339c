"""``--cfg-options``: mmengine's parser, whose errors are told in a sentence."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction


class CfgOptions(DictAction):
    """The ``action`` of an option that takes ``key=value``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Sequence[str], *more):
        for word in values:
            try:
                super().__call__(parser, namespace, [word], *more)
            except (ValueError, AssertionError, RecursionError):  # no `=`, an open bracket, parentheses
                raise argparse.ArgumentError(
                    self,
                    f'takes key=value, a list as key="[a,b]" and no dict(...), whose keys are written one by one '
                    f'(model.backbone.scale.growth=stack model.backbone.scale.new_layers=1), got {word}',
                ) from None
