"""What a scaled network costs: parameters by role, FLOPs, saved size, and the paper's tables beside them."""

from .flops import count_flops, meta_parameters, without_adjustments

__all__ = ['count_flops', 'meta_parameters', 'without_adjustments']
