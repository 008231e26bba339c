# python tools/train.py configs/ablations/deit_s_adapter_r32_100e.py
# Table II, DeiT-S Adapter r=32: not legible in the source text. Not run here.
_base_ = '../scalenet_deit_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='ParallelAdapter', rank=32))))
