# The quickstart's detector, scaled: every stage twice as deep, tied; adapters, norms and the box head's last layers.
# python tools/train.py configs/demo/mask_rcnn_scalenet_swin_digits.py
_base_ = ['./mask_rcnn_swin_digits.py']
model = dict(
    backbone=dict(type='ScaleNetSwin', scale=dict(times=2, stages='all', adjust=dict(type='ParallelAdapter', rank=8)))
)
policy = dict(train='increments', also=['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'])
optim_wrapper = dict(
    constructor='ScaleNetOptimWrapperConstructor',
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(policy=dict(train='config'), norm_decay_mult=0.0),
)
train_cfg = dict(max_epochs=1, val_interval=1)
load_from = 'work_dirs/mask_rcnn_swin_digits/epoch_8.pth'
