# python tools/train.py configs/ablations/swin_b_x4_100e.py
# Table IV, Swin-B x4: our row, not in the paper's table. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, times=4, adjust=dict(type='ParallelAdapter', rank=16))))
