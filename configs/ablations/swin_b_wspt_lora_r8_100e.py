# python tools/train.py configs/ablations/swin_b_wspt_lora_r8_100e.py
# Table II, Swin-B WSPT + LoRA r=8: our row, not in the paper's table. Not run here.
_base_ = '../scalenet_swin_b_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, adjust=dict(type='LoRA', rank=8))))
