# Data, schedule and runtime of every ADE20K config: mmseg's UPerNet Swin at 512 x 512 (Sec. IV-E2; AdamW 6e-5, 8 GPUs x
# 2) in 40k iterations.
_base_ = ['./register.py', 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py']
runner_type = 'ScaleNetRunner'  # adds exact resume, the check of load_from, and the policy
randomness = dict(seed=0)
# 'config' is the top-level `policy`, which says what is trained
optim_wrapper = dict(constructor='ScaleNetOptimWrapperConstructor', paramwise_cfg=dict(policy=dict(train='config')))

data_root = '{{$SCALENET_ADE_ROOT:data/ade/ADEChallengeData2016}}'
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(data_root=data_root))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=40000, by_epoch=False),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2
default_hooks = dict(
    checkpoint=dict(interval=4000, max_keep_ckpts=2, save_best='mIoU')  # 'auto' is mmseg's aAcc
)
