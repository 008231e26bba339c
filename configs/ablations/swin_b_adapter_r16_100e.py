# python tools/train.py configs/ablations/swin_b_adapter_r16_100e.py
# Table II, Swin-B Adapter r=16: 83.56 % top-1, 89.69 M parameters. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='ParallelAdapter', rank=16))))
