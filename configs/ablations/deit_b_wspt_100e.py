# python tools/train.py configs/ablations/deit_b_wspt_100e.py
# Table II, DeiT-B WSPT: not legible in the source text. Not run here.
# No adjustments. All is trained; the paper does not say what is.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=None)))
policy = dict(train='all')
