# python tools/train.py configs/baselines/swin_t_zero_100e.py
# Table I, Swin-T Zero: our row, not in the paper's table. Not run here.
# Copies with zeroed outputs (LLaMA Pro), up to ScaleNet's size: 1 independent layer. All is trained, as in the
# baselines.
_base_ = '../scalenet_swin_t_100e.py'
model = dict(backbone=dict(scale=dict(_delete_=True, growth='zero', new_layers=1, stages=(2,))))
policy = dict(train='all')
