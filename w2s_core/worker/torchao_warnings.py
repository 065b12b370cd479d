"""torchao's warnings on import, silenced: of kernels for other GPUs, and torch's own of how torchao registers enums.

transformers imports torchao wherever it is installed.
"""

from __future__ import annotations

import logging

_LOGGERS = ("torchao", "torch.utils._pytree")


def silence_torchao() -> None:
    """Lets only errors of these loggers through, from now on. Call it before transformers loads models."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
