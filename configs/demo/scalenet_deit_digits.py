# deit_digits.py, scaled: twice the layers, tied; adapters and norms trained, a third of the source's epochs.
# python tools/train.py configs/demo/scalenet_deit_digits.py --cfg-options load_from=<checkpoint of deit_digits.py>
_base_ = ['./deit_digits.py']
model = dict(
    backbone=dict(
        type='ScaleNetDeiT', scale=dict(times=2, order='interpolate', adjust=dict(type='ParallelAdapter', rank=4))
    )
)
train_cfg = dict(max_epochs=4, val_interval=4)
policy = dict(train='increments')
optim_wrapper = dict(
    constructor='ScaleNetOptimWrapperConstructor',
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(policy=dict(train='config'), norm_decay_mult=0.0),
)
load_from = 'work_dirs/deit_digits/epoch_12.pth'
