# The quickstart's detector, scaled: last stage twice as deep, tied; adapters, norms and the final layers of the box
# head.
# python tools/train.py configs/demo/mask_rcnn_scalenet_swin_digits.py --cfg-options load_from=<checkpoint of
# mask_rcnn_swin_digits.py>
_base_ = ['./mask_rcnn_swin_digits.py']
model = dict(
    backbone=dict(type='ScaleNetSwin', scale=dict(times=2, stages=(3,), adjust=dict(type='ParallelAdapter', rank=8)))
)
policy = dict(train='increments', also=['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'])
optim_wrapper = dict(
    constructor='ScaleNetOptimWrapperConstructor',
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(policy=dict(train='config'), norm_decay_mult=0.0),
)
train_cfg = dict(max_epochs=3, val_interval=3)
load_from = 'work_dirs/mask_rcnn_swin_digits/epoch_8.pth'
