# python tools/train.py configs/ablations/swin_s_adapter_r16_100e.py
# Table II, Swin-S Adapter r=16: 83.24 % top-1, 51.05 M parameters. Not run here.
_base_ = '../scalenet_swin_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='ParallelAdapter', rank=16))))
