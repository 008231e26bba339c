# python tools/train.py configs/ablations/swin_s_wspt_100e.py
# Table II, Swin-S WSPT: 83.09 % top-1, 49.61 M parameters. Not run here.
# No adjustments. All is trained; the paper does not say what is.
_base_ = '../scalenet_swin_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=None)))
policy = dict(train='all')
