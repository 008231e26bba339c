# python tools/train.py configs/ablations/deit_b_wspt_lora_r8_100e.py
# Table VI, DeiT-B LoRA r=8: 82.17 % top-1, 88.93 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=dict(type='LoRA', rank=8))))
