"""`scalenet test`, where OpenMMLab's users look for it: python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scalenet_mm.commands.main import process

if __name__ == '__main__':
    process(['test', *sys.argv[1:]], called='test.py')
