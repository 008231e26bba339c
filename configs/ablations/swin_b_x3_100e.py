# python tools/train.py configs/ablations/swin_b_x3_100e.py
# Table IV, Swin-B x3: 83.58 % top-1, 91.39 M parameters. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=3, adjust=dict(type='ParallelAdapter', rank=16))))
