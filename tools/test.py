"""Evaluates a checkpoint: python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--out FILE.json] ..."""

from scalenet_mm.engine.cli import test

if __name__ == '__main__':
    test()
