"""Counter-based randomness: a draw depends on (request seed, hypothesis lineage, position) and on nothing else.

Each hypothesis has a 64-bit *key*. Its token at position t is drawn with `uniform(key, t)`. The first successor of a
hypothesis inherits the key, the others get keys of their own, so that

- plain sampling, however it is cut into chunks, is the lineage of first successors (beam_width=1, successors=1),
- `n` plain samples are the successors of the empty answer, as in best-of-n,
- what else is in the batch cannot matter.

The mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_COPY, _SUCCESSOR, _DRAW, _CALL, _LEVEL = 1, 2, 3, 4, 5  # domains: equal numbers in different roles must not meet


def _finalize(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix(*parts: int) -> int:
    state = 0
    for part in parts:
        state = _finalize(state ^ (part & _MASK))
    return state


def root_key(seed: int) -> int:
    """The empty answer's key. Any integer is a seed; those equal modulo 2⁶⁴ are the same seed."""
    return _mix(seed)


def copy_key(root: int, index: int) -> int:
    """Key of the index-th of W copies of the empty answer; the first is the root itself."""
    return root if index == 0 else _mix(root, _COPY, index)


def successor_key(key: int, position: int, index: int) -> int:
    """Key of the index-th successor of a hypothesis of `position` tokens; the first one inherits."""
    return key if index == 0 else _mix(key, _SUCCESSOR, position, index)


def call_seed(key: int, position: int, attempt: int = 0) -> int:
    """Seed for a provider that draws the successors of a hypothesis of `position` tokens: 63 bits.

    Another one for every position, because equal noise at the beginning of every chunk would be no noise.
    """
    return _mix(key, _CALL, position, attempt) >> 1


def uniform(key: int, position: int) -> float:
    """The draw for the token at `position`: 53 random bits in [0, 1)."""
    return (_mix(key, _DRAW, position) >> 11) * 2.0**-53


def derived_uniform(number: float, level: int) -> float:
    """The `level`-th of the independent numbers in [0, 1) that one such number stands for; level 0 is itself."""
    return number if level == 0 else (_mix(int(number * 2**53), _LEVEL, level) >> 11) * 2.0**-53
