"""A file, of any origin, by the names of the whole model that is to take it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from .dialects import CLASSIFIERS, HEADS, classifier_of, head_to_mmpretrain, rewrite


def for_model(state_dict: Mapping[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """``dialects.rewrite``; a backbone whose library reads its files itself (``own_names``) gets them as they are.

    Args:
        state_dict: of a classifier, detector or segmentor, or a bare backbone or classifier of the library; not
            changed.
        model: a whole model; its backbone translates the rest as it is loaded.
    """
    backbone = getattr(model, 'backbone', None)
    if not hasattr(backbone, 'own_names'):
        return rewrite(state_dict, classifier_of(model))
    if any(key.startswith('backbone.') for key in state_dict):
        return state_dict
    own = backbone.own_names(state_dict)
    found = OrderedDict((f'backbone.{key}', value) for key, value in own.items())
    heads = OrderedDict((k, v) for k, v in state_dict.items() if HEADS.fullmatch(k))
    found.update(head_to_mmpretrain(heads, classifier_of(model) or CLASSIFIERS['swin']))
    found._metadata = OrderedDict((f'backbone.{k}'.rstrip('.'), v) for k, v in own._metadata.items())
    return found
