"""Trains a model: python tools/train.py CONFIG [--work-dir DIR] [--amp] [--resume [CKPT]] [--auto-scale-lr] ..."""

from scalenet_mm.engine.cli import train

if __name__ == '__main__':
    train()
