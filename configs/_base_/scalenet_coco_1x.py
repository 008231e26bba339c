# Data, schedule and runtime of every COCO 2017 config: mmdet's Mask R-CNN Swin 1x (Sec. IV-E1; 12 epochs, AdamW 1e-4, 8
# GPUs x 2).
_base_ = ['./register.py', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py']
runner_type = 'ScaleNetRunner'  # adds exact resume, the check of load_from, and the policy
randomness = dict(seed=0)
# 'config' is the top-level `policy`, which says what is trained
optim_wrapper = dict(constructor='ScaleNetOptimWrapperConstructor', paramwise_cfg=dict(policy=dict(train='config')))

data_root = '{{$SCALENET_COCO_ROOT:data/coco}}'.rstrip('/') + '/'
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = test_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2, save_best='auto'))
