# python tools/train.py configs/ablations/swin_t_wspt_100e.py
# Table II, Swin-T WSPT: 81.23 % top-1, 28.29 M parameters. Not run here.
# No adjustments. All is trained; the paper does not say what is.
_base_ = '../scalenet_swin_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=None)))
policy = dict(train='all')
