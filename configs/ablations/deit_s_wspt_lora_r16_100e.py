# python tools/train.py configs/ablations/deit_s_wspt_lora_r16_100e.py
# Table II, DeiT-S WSPT + LoRA r=16: our row, not in the paper's table. Not run here.
_base_ = '../scalenet_deit_s_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=dict(type='LoRA', rank=16))))
