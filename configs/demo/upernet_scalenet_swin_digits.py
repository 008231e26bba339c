# The quickstart's segmentor, scaled: every stage twice as deep, tied; adapters, norms and the last layer of both heads.
# python tools/train.py configs/demo/upernet_scalenet_swin_digits.py
_base_ = ['./upernet_swin_digits.py']
model = dict(
    backbone=dict(type='ScaleNetSwin', scale=dict(times=2, stages='all', adjust=dict(type='ParallelAdapter', rank=8)))
)
policy = dict(train='increments', also=['decode_head.conv_seg', 'auxiliary_head.conv_seg'])
optim_wrapper = dict(
    constructor='ScaleNetOptimWrapperConstructor',
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(policy=dict(train='config'), norm_decay_mult=0.0),
)
train_cfg = dict(max_iters=375, val_interval=375)
load_from = 'work_dirs/upernet_swin_digits/iter_3000.pth'
