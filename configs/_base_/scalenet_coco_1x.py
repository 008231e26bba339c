# Data, schedule and runtime of every COCO 2017 config: mmdet's Mask R-CNN Swin 1x (Sec. IV-E1; 12 epochs, AdamW 1e-4, 8
# GPUs x 2).
_base_ = ['./register.py', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py']
custom_hooks = [dict(type='AnyDialectHook'), dict(type='ReseedHook')]
randomness = dict(seed=0)

data_root = '{{$SCALENET_COCO_ROOT:data/coco}}'.rstrip('/') + '/'
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SeededDataset',
        dataset=dict(
            type='CocoDataset',
            data_root=data_root,
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline={{_base_.train_pipeline}},
            backend_args={{_base_.backend_args}},
        ),
    ),
    sampler=dict(_delete_=True, type='SeededSampler', sampler=dict(type='DefaultSampler', shuffle=True)),
)
val_dataloader = test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = test_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2, save_best='auto'))
