# python tools/train.py configs/ablations/swin_t_adapter_r16_100e.py
# Table II, Swin-T Adapter r=16: 81.32 % top-1, 28.99 M parameters. Not run here.
_base_ = '../scalenet_swin_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=1, adjust=dict(type='ParallelAdapter', rank=16))))
