"""Language models (Table X): instruction data, training, saving and evaluation. ``pip install scalenet_mm[lm]``.

Nothing of transformers or lm_eval is imported before it is used.
"""

from importlib.util import find_spec

EXTRAS = ('transformers', 'accelerate', 'datasets', 'lm_eval')


def require_extras(*packages: str) -> None:
    """Ends a tool where packages of the extra ``lm`` are missing.

    Raises:
        SystemExit: naming them and the command that installs them.
    """
    missing = [name for name in packages or EXTRAS if find_spec(name) is None]
    if missing:
        raise SystemExit(f'{", ".join(missing)} not installed; language models need: pip install scalenet_mm[lm]')
