# python tools/train.py configs/ablations/swin_b_all_stages_100e.py
# Table III, Swin-B all stages: 83.48 % top-1. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, stages='all', adjust=dict(type='ParallelAdapter', rank=16))))
