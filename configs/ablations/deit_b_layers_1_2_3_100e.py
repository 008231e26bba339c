# python tools/train.py configs/ablations/deit_b_layers_1_2_3_100e.py
# Table III, DeiT-B layers (1, 2, 3): 82.11 % top-1, 87.31 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, layers=(0, 1, 2), adjust=dict(type='ParallelAdapter', rank=16))))
