# The quickstart's segmentor, scaled: last stage twice as deep, tied; adapters, norms and the last layer of both heads.
# python tools/train.py configs/demo/upernet_scalenet_swin_digits.py --cfg-options load_from=<checkpoint of
# upernet_swin_digits.py>
_base_ = ['./upernet_swin_digits.py']
model = dict(
    backbone=dict(type='ScaleNetSwin', scale=dict(times=2, stages=(3,), adjust=dict(type='ParallelAdapter', rank=8)))
)
policy = dict(train='increments', also=['decode_head.conv_seg', 'auxiliary_head.conv_seg'])
optim_wrapper = dict(
    constructor='ScaleNetOptimWrapperConstructor', paramwise_cfg=dict(policy=dict(train='config'), norm_decay_mult=0.0)
)
train_cfg = dict(max_iters=450, val_interval=450)
load_from = 'work_dirs/upernet_swin_digits/iter_3000.pth'
