# python tools/train.py configs/ablations/deit_b_order_stack_100e.py
# Table V, DeiT-B stack: 82.23 % top-1. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, order='stack', adjust=dict(type='ParallelAdapter', rank=16))))
