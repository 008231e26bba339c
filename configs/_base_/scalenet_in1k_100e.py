# Data, schedule and runtime of every ImageNet-1K config (Sec. IV-A1; augmentation and decay of the official Swin
# script).
# Not stated in the paper, so the hosts' defaults: 20 epochs of warm-up, gradient clipping at 5.
# Colour jitter 0.4 of the official script has no effect beside RandAugment (timm leaves it out then), so it is not
# here.
_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py', 'mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['scalenet_mm'])
runner_type = 'ScaleNetRunner'  # adds exact resume, the check of load_from, and the policy
randomness = dict(seed=0)

# What is trained, and what else: policy = dict(train='increments', also=['head']) trains the head besides.
policy = dict(train='increments')
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='ScaleNetOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        policy=dict(train='config'),  # the one above
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            '.absolute_pos_embed': dict(decay_mult=0.0),
            '.relative_position_bias_table': dict(decay_mult=0.0),
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0),
        },
    ),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=2e-6, by_epoch=True, begin=20, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=512, enable=False)  # 8 GPUs x 64

data_root = '{{$SCALENET_IMAGENET_ROOT:data/imagenet}}'
train_dataloader = dict(
    num_workers=8,  # a core gives about 264 images/s (docs/performance.md)
    persistent_workers=True,  # exact: every sample is reseeded by (seed, iteration)
    dataset=dict(data_root=data_root),
)
val_dataloader = test_dataloader = dict(dataset=dict(data_root=data_root))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto'))
