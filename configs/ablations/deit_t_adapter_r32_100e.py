# python tools/train.py configs/ablations/deit_t_adapter_r32_100e.py
# Table II, DeiT-T Adapter r=32: 75.07 % top-1, 6.45 M parameters. Not run here.
_base_ = '../scalenet_deit_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='ParallelAdapter', rank=32))))
