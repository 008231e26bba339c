# python tools/train.py configs/baselines/deit_b_scratch_100e.py
# Table VII, DeiT-B scratch 100 epochs: 68.91 % top-1, 29.8 h on 8 GPUs. Not run here.
# As the official DeiT (Sec. IV-D): lr 5e-4 a batch of 512 down to 1e-5, 5 epochs of warm-up, drop path 0.1, no
# clipping. Left out: its repeated augmentation, EMA and 10 epochs of cool-down.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(drop_path_rate=0.1, scale=dict(_delete_=True, growth='random', times=2)))
policy = dict(train='all')
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)
load_from = None
