"""Counter-based random numbers: a draw depends on the request's seed, the hypothesis' lineage and the position alone.

Each hypothesis has a 64-bit *key*, and its token at position t is drawn with `uniform(key, t)`. The first successor of
a hypothesis inherits its key and the others get new keys. It follows that

- plain sampling, however it is cut into chunks, is the lineage of first successors (beam_width=1, successors=1);
- `n` plain samples are the successors of the empty answer, as in best-of-n;
- the other rows of a batch do not change a draw, nor does another worker that continues the search.

The mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Domain separation: equal numbers in different roles give other keys.
_COPY, _SUCCESSOR, _DRAW, _CALL, _LEVEL, _ANSWER = 1, 2, 3, 4, 5, 6


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
    """Key of the empty answer. Any integer is a seed; seeds that are equal modulo 2⁶⁴ are the same."""
    return _mix(seed)


def answer_seed(seed: int) -> int:
    """The seed of an answer behind thoughts, which the request's own seed has drawn."""
    return _mix(seed, _ANSWER)


def copy_key(root: int, index: int) -> int:
    """Key of the `index`-th of W copies of the empty answer; the first one's is `root` itself."""
    return root if index == 0 else _mix(root, _COPY, index)


def successor_key(key: int, position: int, index: int) -> int:
    """Key of the `index`-th successor of a hypothesis of `position` tokens; the first one inherits `key`."""
    return key if index == 0 else _mix(key, _SUCCESSOR, position, index)


def call_seed(key: int, position: int, attempt: int = 0) -> int:
    """A 63-bit seed for a provider's call that draws the successors of a hypothesis of `position` tokens.

    It differs with the position, because with the same seed every chunk would draw the same random numbers.
    """
    return _mix(key, _CALL, position, attempt) >> 1


def uniform(key: int, position: int) -> float:
    """The uniform number in [0, 1), of 53 random bits, that draws the token at `position`."""
    return (_mix(key, _DRAW, position) >> 11) * 2.0**-53


def derived_uniform(number: float, level: int) -> float:
    """The `level`-th of the independent numbers in [0, 1) that one such number stands for; level 0 is itself."""
    return number if level == 0 else (_mix(int(number * 2**53), _LEVEL, level) >> 11) * 2.0**-53
