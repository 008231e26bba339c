# Digit sums (docs/demo_data.md): 32 x 32 scenes of two digits, the label is their sum, 19 classes.
_base_ = ['mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['scalenet_mm'])
runner_type = 'ScaleNetRunner'  # adds exact resume, the check of load_from, and the policy
randomness = dict(seed=0)

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=19, mean=[90.0] * 3, std=[60.0] * 3, to_rgb=True),
    head=dict(type='LinearClsHead', num_classes=19, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)),
)

_classes = [f'{i:02d}' for i in range(19)]
_loader = dict(batch_size=128, num_workers=1, persistent_workers=True, collate_fn=dict(type='default_collate'))
_data = dict(
    type='ImageNet',
    data_root='data/demo/imagenet',
    metainfo=dict(classes=_classes),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
)
train_dataloader = dict(
    **_loader, dataset=dict(**_data, split='train'), sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True
)
val_dataloader = dict(**_loader, dataset=dict(**_data, split='val'), sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = test_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
)
