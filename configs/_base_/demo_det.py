# Digit scenes in COCO layout (docs/demo_data.md): 96 x 96, five to nine digits of 10 classes, boxes and masks.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['scalenet_mm'])
runner_type = 'ScaleNetRunner'  # adds exact resume, the check of load_from, and the policy
randomness = dict(seed=0)

# digits are 12 to 30 pixels wide: three stages, with anchors and RoI levels that fit these
model = dict(
    data_preprocessor=dict(mean=[125.0] * 3, std=[67.0] * 3),
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=24,
        depths=[1, 1, 1],
        num_heads=[2, 4, 8],
        strides=(4, 2, 2),
        window_size=6,  # of the 6 x 6 places of the last stage: each sees all
        drop_path_rate=0.0,
        out_indices=(0, 1, 2),
    ),
    neck=dict(in_channels=[24, 48, 96], out_channels=48, num_outs=3),
    rpn_head=dict(
        in_channels=48, feat_channels=48, anchor_generator=dict(scales=[4], ratios=[1.0, 1.7], strides=[4, 8, 16])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=48,
            featmap_strides=[4, 8, 16],
            finest_scale=14,
            roi_layer=dict(output_size=5, sampling_ratio=2),
        ),
        bbox_head=dict(in_channels=48, fc_out_channels=64, roi_feat_size=5, num_classes=10),
        mask_roi_extractor=dict(
            out_channels=48,
            featmap_strides=[4, 8, 16],
            finest_scale=14,
            roi_layer=dict(output_size=10, sampling_ratio=1),
        ),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=24, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=48)),
        rpn_proposal=dict(nms_pre=100, max_per_img=40),
        rcnn=dict(sampler=dict(num=24), mask_size=20),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=40), rcnn=dict(max_per_img=20)),
)

_metainfo = dict(classes=[str(i) for i in range(10)])
_data_root = 'data/demo/coco/'
_loader = dict(batch_size=16, num_workers=1, persistent_workers=True)
train_dataloader = dict(
    **_loader,
    dataset=dict(
        type='CocoDataset',
        data_root=_data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        metainfo=_metainfo,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=True),
            dict(type='PackDetInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    **_loader,
    dataset=dict(
        type='CocoDataset',
        test_mode=True,
        data_root=_data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        metainfo=_metainfo,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(96, 96), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(
    type='CocoMetric', ann_file=_data_root + 'annotations/instances_val2017.json', metric=['bbox', 'segm']
)
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=4)
val_cfg = test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20), checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
)
