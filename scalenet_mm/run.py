"""Runs another project's script with scalenet_mm imported first: python -m scalenet_mm.run SCRIPT [ARGUMENTS ...]

Its configs may then say `scalenet_mm::...` and `mmseg::...`, in either OpenMMLab family.
"""

import runpy
import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    """Runs `argv[0]` as `python` would, with `argv` as its command line.

    Raises:
        SystemExit: there is no such script.
    """
    if not argv or not Path(argv[0]).is_file():
        raise SystemExit(
            f'python -m scalenet_mm.run SCRIPT [ARGUMENTS ...]: SCRIPT must be a Python file such as '
            f'tools/train.py, got {argv[0] if argv else "nothing"}.'
        )
    sys.argv[:] = argv
    sys.path[0] = str(Path(argv[0]).resolve().parent)  # where a script's own imports are looked up
    runpy.run_path(argv[0], run_name='__main__')


if __name__ == '__main__':
    main(sys.argv[1:])
