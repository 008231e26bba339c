# python tools/train.py configs/ablations/deit_b_wspt_adapter_r32_100e.py
# Table VI, DeiT-B Adapter r=32: 82.44 % top-1, 92.53 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=dict(type='ParallelAdapter', rank=32))))
