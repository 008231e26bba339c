# python tools/train.py configs/ablations/swin_b_wspt_100e.py
# Table II, Swin-B WSPT: 83.61 % top-1, 87.77 M parameters. Not run here.
# No adjustments. All is trained; the paper does not say what is.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=None)))
policy = dict(train='all')
