"""Lets ``import mmcv._ext`` find ``mmcv_ops`` where mmcv was installed without compiled operators.

Only the standard library is imported here: the set-up copies this file into the environment and starts it from a
``.pth`` file, since mmdet's and mmseg's own tools import ``mmcv.ops`` before a config could import scalenet_mm.
"""

import sys
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path

NAME, FOLDER = 'mmcv._ext', 'mmcv_ops'


class MmcvOpsFinder:
    """Asked after all others, so a compiled module always wins."""

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        if name != NAME:
            return None
        folder = Path(__file__).parent / FOLDER
        if not folder.is_dir():  # in the environment's copy
            package = find_spec('scalenet_mm')
            folder = Path(package.origin).parent / FOLDER if package and package.origin else None
            if folder is None:
                return None
        return spec_from_file_location(NAME, folder / '__init__.py', submodule_search_locations=[str(folder)])


if not any(getattr(finder, '__name__', '') == 'MmcvOpsFinder' for finder in sys.meta_path):
    sys.meta_path.append(MmcvOpsFinder)
