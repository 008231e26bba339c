# python tools/train.py configs/mask_rcnn_scalenet_swin_t_all_stages_1x.py
# Sec. IV-E1 says that all layers are reused; the counts of Table VIII say the last stage. Not run here.
_base_ = './mask_rcnn_scalenet_swin_t_1x.py'
model = dict(backbone=dict(scale=dict(stages='all')))
