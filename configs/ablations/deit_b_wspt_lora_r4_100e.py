# python tools/train.py configs/ablations/deit_b_wspt_lora_r4_100e.py
# Table VI, DeiT-B LoRA r=4: 82.15 % top-1, 87.75 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=dict(type='LoRA', rank=4))))
