"""mmcv's compiled operators from torch and torchvision, for an mmcv that was installed without a compiler.

Loaded under the name ``mmcv._ext`` where the compiled module is missing (``finder.py``); never imported otherwise. Names
and arguments are those of the compiled functions, which write into tensors that mmcv's Python code hands over.
"""

from .deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .reassembly import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    psamask_backward,
    psamask_forward,
)
from .roi import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward
from .suppression import bbox_overlaps, nms, nms_match, softnms

SUPPLIED = sorted(name for name, value in globals().items() if callable(value) and not name.startswith('_'))
COMPILE = 'bash tools/setup_env.sh --compile-mmcv'
__all__ = [*SUPPLIED]  # noqa: PLE0604


def __getattr__(name: str):
    """An operator that is not here: importing it works, calling it says what to do."""
    if name.startswith('_'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f"mmcv's operator {name!r} needs a compiled mmcv, and this one was installed without a compiler. Compile it "
            f'with: {COMPILE} (elsewhere: MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary :all: mmcv). '
            f'Without a compiler there are: {", ".join(SUPPLIED)}.'
        )

    missing.__name__ = name
    return missing
