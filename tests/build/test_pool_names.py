"""A model is loaded once for each use that makes another model of it, and those have different names in the pool."""

from __future__ import annotations

import pytest

from tests.tiny import save_tiny
from w2s_core.build.local import _PoolNames
from w2s_core.build.tokenizers import TokenizerCache
from w2s_core.config import LargeModelConfig, PairConfig, RewardModelConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


def test_a_number_and_a_text_are_different_labels(folder: str) -> None:
    """The text may be the name of another output."""
    names = _PoolNames(TokenizerCache(), "none")
    entries = [LargeModelConfig(folder), *(RewardModelConfig(folder, label=label) for label in (None, 1, "1"))]
    assert len({names.of(entry, folder) for entry in entries}) == 4


def test_each_quantization_is_a_model_and_the_workers_own_is_what_an_entry_without_one_gets(folder: str) -> None:
    names = _PoolNames(TokenizerCache(), "int8")
    plain = LargeModelConfig(folder, quantization="none")
    default, told = LargeModelConfig(folder), PairConfig(folder, None, quantization="int8")
    assert names.of(default, folder) == names.of(told, folder) != names.of(plain, folder)
    assert [names.quantization(entry) for entry in (plain, default, told)] == ["none", "int8", "int8"]
