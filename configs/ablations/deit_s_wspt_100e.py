# python tools/train.py configs/ablations/deit_s_wspt_100e.py
# Table II, DeiT-S WSPT: 80.56 % top-1, 22.05 M parameters. Not run here.
# No adjustments. All is trained; the paper does not say what is.
_base_ = '../scalenet_deit_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=None)))
