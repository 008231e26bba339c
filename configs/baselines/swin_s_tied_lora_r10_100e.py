# python tools/train.py configs/baselines/swin_s_tied_lora_r10_100e.py
# Table I, Swin-S Tied LoRA r=10: our row, not in the paper's table. Not run here.
# Shared layers with LoRA of ScaleNet's size (PEFT's layer replication); only LoRA is trained.
_base_ = '../scalenet_swin_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=dict(type='LoRA', rank=10))))
policy = dict(train='adjustments')
