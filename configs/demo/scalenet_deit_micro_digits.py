# The quickstart's model, scaled: two tied layers with adapters. So small a network is trained whole.
# python tools/train.py configs/demo/scalenet_deit_micro_digits.py
_base_ = ['./deit_micro_digits.py']
model = dict(
    backbone=dict(
        type='ScaleNetDeiT', scale=dict(times=2, order='interpolate', adjust=dict(type='ParallelAdapter', rank=4))
    )
)
train_cfg = dict(max_epochs=5, val_interval=5)
policy = dict(train='all')
optim_wrapper = dict(
    constructor='ScaleNetOptimWrapperConstructor',
    optimizer=dict(lr=1.6e-2),
    paramwise_cfg=dict(_delete_=True, policy=dict(train='config'), norm_decay_mult=0.0, bias_decay_mult=0.0),
)
load_from = 'work_dirs/deit_micro_digits/epoch_16.pth'
