"""Adapted models in a worker: logits of merged weights, a base that is left alone, shared memory, clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapters import save_adapter, save_merged
from tests.tiny import save_tiny
from w2s_core.errors import ConfigurationError
from w2s_core.pool.specs import AdapterSpec, ModelSpec, WorkerSpec
from w2s_core.worker.batch import Batch
from w2s_core.worker.loading import load_models
from w2s_core.worker.lora import LoRALinear
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.token_tree import TokenTree

KEY = "pairs.p.tuned"
TEXT = tuple(range(40, 60))


def load(*models: tuple[Path, Path | None], dtype: str = "float32") -> list[ModelRunner]:
    """The runners of models, each a base and an adapter."""
    specs = {
        str(i): ModelSpec(str(base), False, adapter=AdapterSpec(KEY, str(adapter)) if adapter else None)
        for i, (base, adapter) in enumerate(models)
    }
    loaded = load_models(WorkerSpec("cpu", dtype, 1, 10**6, specs))
    return [runner for runner, _ in loaded.values()]


def logits(runner: ModelRunner) -> torch.Tensor:
    """The logits behind the last token of TEXT."""
    batch, tree = Batch(len(TEXT)), TokenTree(runner.cache, TEXT)
    batch.request_logits(tree, tree.root)
    found = runner.forward(batch)
    tree.close()
    return found


def matrices(runner: ModelRunner) -> list[torch.Tensor]:
    """A and B of every adapter of a runner's base."""
    adapted = [module for module in runner._model.modules() if isinstance(module, LoRALinear)]
    return [matrix for layer in adapted for pair in layer.changes.values() for matrix in pair]


def tensors(runner: ModelRunner) -> dict[int, int]:
    """Bytes by the address of every weight of a runner's model, packed ones too."""
    model = runner._model
    plain = [*model.parameters(), *model.buffers(), *matrices(runner)]
    found = {tensor.data_ptr(): tensor.nbytes for tensor in plain}
    packed = [module._packed for module in model.modules() if hasattr(module, "_packed")]
    return found | {id(tensor): 4 * tensor.numel() for tensor in packed}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"v_proj": 7}, "alpha_pattern": {r"layers\.1\..*v_proj": 5, "down_proj": 9}},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
    ],
)
def test_logits_are_those_of_merged_weights(options: dict[str, Any], tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, **options)
    adapted, merged = load((base, adapter), (save_merged(tmp_path / "merged", base, adapter), None))
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=0, atol=1e-4)
    [plain] = load((base, None))
    assert (logits(adapted) - logits(plain)).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma3"])
@pytest.mark.parametrize("packs", [True, False])
def test_every_family_with_and_without_packed_weights(
    family: str, packs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packs:
        monkeypatch.setattr("w2s_core.worker.loading.can_pack", lambda model: False)
    base = save_tiny(tmp_path / "base", family=family)  # GPT-2 and Gemma tie the head to the embeddings
    adapter = save_adapter(tmp_path / "adapter", base)
    adapted, merged = load((base, adapter), (save_merged(tmp_path / "merged", base, adapter), None))
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=0, atol=1e-4)
    assert any(isinstance(module, LoRALinear) for module in adapted._model.modules())


def test_bfloat16_is_computed_in_bfloat16(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    adapted, exact = load((base, adapter), dtype="bfloat16")[0], load((base, adapter))[0]
    assert {matrix.dtype for matrix in matrices(adapted)} == {torch.bfloat16}
    assert (logits(adapted) - logits(exact)).abs().max() < 0.1 * logits(exact).abs().max()


@pytest.mark.parametrize("base_first", [True, False])
def test_the_base_is_left_alone_and_weights_are_there_once(base_first: bool, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapters = [save_adapter(tmp_path / f"{rank}", base, seed=rank, rank=rank) for rank in (2, 4)]
    [alone] = load((base, None))
    order: list[tuple[Path, Path | None]] = [(base, None), *((base, adapter) for adapter in adapters)]
    runners = load(*(order if base_first else order[::-1]))
    plain, *adapted = runners if base_first else runners[::-1]
    for _ in range(2):
        changed = [logits(runner) for runner in adapted]
        assert torch.equal(logits(plain), logits(alone))
    assert not torch.equal(*changed)
    held = tensors(plain)
    assert all(tensors(runner) == held for runner in adapted)
    saved = [load_file(tmp_path / f"{rank}" / "adapter_model.safetensors").values() for rank in (2, 4)]
    added = sum(tensor.nbytes for adapter in saved for tensor in adapter)
    assert sum(held.values()) == sum(tensors(alone).values()) + added


def test_a_base_that_only_adapters_use_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base")
    adapters = [save_adapter(tmp_path / f"{seed}", base, seed=seed) for seed in (1, 2)]
    loaded: list[str] = []
    real = AutoModelForCausalLM.from_pretrained

    def counting(source: str, **options: Any) -> Any:
        loaded.append(source)
        return real(source, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counting)
    load((base, adapters[0]), (base / "../base", adapters[1]))
    assert loaded == [str(base)]


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        found = load_file(folder / "adapter_model.safetensors")
        change(found)
        save_file(found, folder / "adapter_model.safetensors")

    return edited


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (edit(peft_type="IA3"), "`peft_type: IA3`"),
    (edit(use_dora=True), "`use_dora: true`"),
    (edit(modules_to_save=["lm_head"]), r'`modules_to_save: ["lm_head"]`'),
    (edit(bias="lora_only"), '`bias: "lora_only"`'),
    (edit(lora_bias=True), "`lora_bias: true`"),
    (edit(init_lora_weights="pissa"), "`init_lora_weights: pissa`"),
    (edit(layer_replication=[[0, 1], [0, 1]]), "`layer_replication: [[0, 1], [0, 1]]`"),
    (edit(key_of_a_later_peft={"a": 1}), '`key_of_a_later_peft: {"a": 1}`'),
    (edit(r=8), "has matrices of rank 4 for `model.layers"),
    (edit_tensors(lambda found: found.update({"base_model.model.lm_head.weight": torch.ones(1)})), "the tensor `base_"),
    (edit_tensors(lambda found: found.pop(FIRST)), "does not have both matrices of every layer"),
    (edit_tensors(lambda found: found.clear()), "does not have both matrices of every layer"),
    (edit(r=0), "adapter_config.json: r: Input should be greater than 0."),
    (edit(r=None), "adapter_config.json: r: Input should be a valid integer."),
    (edit(lora_alpha="much"), "adapter_config.json: lora_alpha: Input should be a valid number"),
    (edit(rank_pattern={"q_proj": 0}), "adapter_config.json: rank_pattern.q_proj: Input should be greater than 0."),
    (edit(rank_pattern=[3]), "adapter_config.json: rank_pattern: Input should be a valid dictionary."),
    (edit(alpha_pattern={"(": 2}), "a pattern of layers is no regular expression: "),
    (edit_tensors(lambda found: found.update({FIRST: torch.ones(4)})), f"the tensor `{FIRST}` of 1 dimensions"),
    (pickle, "cannot be read: No such file"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read: Expecting"),  # type: ignore[arg-type,return-value]
    (lambda folder: (folder / "adapter_config.json").write_text("[]"), "`peft_type: None`"),  # type: ignore[arg-type,return-value]
]


@pytest.fixture(scope="module")
def plain_adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("adapter")
    base = save_tiny(root / "base")
    return base, save_adapter(root / "adapter", base)


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_is_not_plain_lora_is_refused_by_its_name(
    change: Callable[[Path], None], message: str, plain_adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = plain_adapter
    changed = Path(shutil.copytree(adapter, tmp_path / "changed"))
    load((base, changed))
    change(changed)
    with pytest.raises(ConfigurationError) as refused:
        load((base, changed))
    told = str(refused.value)
    assert told.startswith(f"{KEY}: ")
    assert message in told
    assert "\n" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["embed_tokens"]}, "the tensor `base_model.model.model.embed_tokens"),
        ({"target_modules": ["lm_head"]}, "the tensor `base_model.model.lm_head.base_layer.weight`"),
        ({"use_dora": True}, "`use_dora: true`"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save: "),
    ],
)
def test_so_is_what_peft_itself_writes(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, **options)
    with pytest.raises(ConfigurationError) as refused:
        load((base, adapter))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("family", "message"),
    [("gpt2", "changes `model.layers.0.mlp.down_proj`, and {base} has no such layer"), ("wide", "of 32 × 64 weights")],
)
def test_an_adapter_of_another_base_is_refused(family: str, message: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    if family == "wide":
        config = AutoModelForCausalLM.from_pretrained(base).config
        config.intermediate_size = 96
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    else:
        save_tiny(tmp_path / "other", family=family)
    with pytest.raises(ConfigurationError) as refused:
        load((tmp_path / "other", adapter))
    assert str(refused.value).startswith(f"{KEY}: the adapter {adapter} is one of another base. ")
    assert message.format(base=tmp_path / "other") in str(refused.value)


def test_an_adapter_of_a_layer_that_is_not_linear(plain_adapter: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = plain_adapter
    changed = Path(shutil.copytree(adapter, tmp_path / "changed"))
    pair = [FIRST, FIRST.replace("lora_A", "lora_B")]
    names = [name.replace("layers.0.self_attn.q_proj", "norm") for name in pair]
    edit_tensors(lambda found: found.update(zip(names, [found.pop(name) for name in pair], strict=True)))(changed)
    with pytest.raises(ConfigurationError, match=r"`model\.norm`, .* has a LlamaRMSNorm there, not a linear layer"):
        load((base, changed))


def test_an_adapter_of_what_another_adapter_has_added(plain_adapter: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = plain_adapter
    changed = Path(shutil.copytree(adapter, tmp_path / "changed"))
    pair = [FIRST, FIRST.replace("lora_A", "lora_B")]
    names = [name.replace("q_proj", "q_proj.base") for name in pair]
    edit_tensors(lambda found: found.update(zip(names, [found.pop(name) for name in pair], strict=True)))(changed)
    with pytest.raises(ConfigurationError, match=r"`model\.layers\.0\.self_attn\.q_proj\.base`, .* has no such layer"):
        load((base, adapter), (base, changed))


def test_transformers_loads_no_adapter_by_itself(plain_adapter: tuple[Path, Path], tmp_path: Path) -> None:
    """It would, where PEFT is installed, also one beside a whole model."""
    base, adapter = plain_adapter
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copytree(adapter, both, dirs_exist_ok=True)
    for folder in (adapter, both):
        with pytest.raises(ConfigurationError, match=r"is or has an adapter. Write {model: BASE, adapter: FOLDER}"):
            load((folder, None))
