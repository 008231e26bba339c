# python tools/train.py configs/ablations/deit_b_adapter_r32_100e.py
# Table II, DeiT-B Adapter r=32: 82.28 % top-1, 89.55 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='ParallelAdapter', rank=32))))
