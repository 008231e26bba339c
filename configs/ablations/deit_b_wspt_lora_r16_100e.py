# python tools/train.py configs/ablations/deit_b_wspt_lora_r16_100e.py
# Table VI (also II), DeiT-B LoRA r=16: 82.18 % top-1, 91.29 M parameters. Not run here.
_base_ = '../scalenet_deit_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=dict(type='LoRA', rank=16))))
