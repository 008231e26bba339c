# python tools/train.py configs/ablations/swin_b_stage_3_100e.py
# Table III, Swin-B stage 3: not legible in the source text. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, stages=(2,), adjust=dict(type='ParallelAdapter', rank=16))))
