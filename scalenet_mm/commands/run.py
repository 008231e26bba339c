"""Run another project's script with scalenet_mm imported first.

    scalenet run SCRIPT [ARGUMENTS ...]

Its configs may then say `scalenet_mm::...` and `mmseg::...`, in either OpenMMLab family.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from .main import refused


def main(argv: Sequence[str]) -> int:
    """Runs `argv[0]` as `python` would, with `argv` as its command line; 2 if there is no such script."""
    if argv and argv[0] in ('-h', '--help'):
        print(__doc__)
        return 0
    if not argv or not Path(argv[0]).is_file():
        return refused(
            'scalenet run',
            f'SCRIPT must be a Python file such as tools/train.py, got {argv[0] if argv else "nothing"}: '
            'scalenet run SCRIPT [ARGUMENTS ...].',
        )
    sys.argv[:] = argv
    sys.path[0] = str(Path(argv[0]).resolve().parent)  # where a script's own imports are looked up
    runpy.run_path(argv[0], run_name='__main__')
    return 0
