# python tools/train.py configs/upernet_scalenet_swin_t_all_stages_40k.py
# Every stage reused, as Sec. IV-E1 says of the detectors. Not run here.
_base_ = './upernet_scalenet_swin_t_40k.py'
model = dict(backbone=dict(scale=dict(stages='all')))
