# python tools/train.py configs/ablations/deit_b_layers_7_8_9_100e.py
# Table III, DeiT-B layers (7, 8, 9): 82.13 % top-1, 87.31 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, layers=(6, 7, 8), adjust=dict(type='ParallelAdapter', rank=16))))
