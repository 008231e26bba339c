# python tools/train.py configs/ablations/swin_b_order_interpolate_100e.py
# Table V, Swin-B interpolate: 83.51 % top-1. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(
    backbone=dict(scale=dict(_delete_=True, order='interpolate', adjust=dict(type='ParallelAdapter', rank=16)))
)
