# python tools/train.py configs/ablations/deit_b_x3_100e.py
# Table IV, DeiT-B x3: 82.27 % top-1, 92.53 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=3, adjust=dict(type='ParallelAdapter', rank=16))))
