# python tools/train.py configs/ablations/deit_t_wspt_100e.py
# Table II, DeiT-T WSPT: 75.58 % top-1, 5.72 M parameters. Not run here.
# No adjustments. All is trained; the paper does not say what is.
_base_ = '../scalenet_deit_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=None)))
