# python tools/train.py configs/ablations/deit_b_layers_10_11_12_100e.py
# Table III, DeiT-B layers (10, 11, 12): 82.30 % top-1, 87.31 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, layers=(9, 10, 11), adjust=dict(type='ParallelAdapter', rank=16))))
