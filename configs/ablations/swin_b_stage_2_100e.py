# python tools/train.py configs/ablations/swin_b_stage_2_100e.py
# Table III, Swin-B stage 2: 83.63 % top-1, 89.78 M parameters. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, stages=(1,), adjust=dict(type='ParallelAdapter', rank=16))))
