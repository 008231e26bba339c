# python tools/train.py configs/ablations/swin_b_stage_1_100e.py
# Table III, Swin-B stage 1: 83.56 % top-1, 89.74 M parameters. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, stages=(0,), adjust=dict(type='ParallelAdapter', rank=16))))
