# python tools/train.py configs/ablations/deit_b_layers_4_5_6_100e.py
# Table III, DeiT-B layers (4, 5, 6): 82.17 % top-1, 87.31 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, layers=(3, 4, 5), adjust=dict(type='ParallelAdapter', rank=16))))
