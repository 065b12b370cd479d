"""Quantized models in a worker: transformers' own logits, adapters on them, and refusals of one line before loading."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.adapters import save_adapter
from tests.quantized import KINDS, WIDE, claim, save_quantized
from tests.tiny import save_tiny, tiny_model
from tests.vnni import vnni
from tests.worker.test_lora import TEXT, load, logits
from w2s_core.errors import UnsupportedModelError
from w2s_core.pool.specs import ModelSpec, WorkerSpec
from w2s_core.worker.int8 import Int8Linear
from w2s_core.worker.loading import load_models
from w2s_core.worker.packing import PackedLinear
from w2s_core.worker.quantized_checkpoints import check_quantization, is_quantized

__all__ = ["vnni"]  # a fixture
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(scope="module", params=KINDS)
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if module := KINDS[request.param][0]:
        pytest.importorskip(module)
    return save_quantized(tmp_path_factory.mktemp(request.param) / "model", request.param)


def own_logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """What transformers, and PEFT, make of the model."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
        model = model if getattr(model, "is_quantized", False) else model.to(torch.float32)
        if adapter is not None:
            if not hasattr(model.model.layers[0].mlp.up_proj, "weight"):
                model(torch.tensor([TEXT]))  # unpacks weights, at which PEFT looks
            model = PeftModel.from_pretrained(model, str(adapter))
        found: torch.Tensor = model(torch.tensor([TEXT])).logits[:, -1]
    return found


@pytest.mark.filterwarnings("ignore")
def test_logits_are_transformers_own(quantized: Path) -> None:
    """And not those of the model before it was quantized."""
    [runner] = load((quantized, None))
    torch.testing.assert_close(logits(runner), own_logits(quantized), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        exact = tiny_model(**WIDE)(torch.tensor([TEXT])).logits[:, -1]
    assert (logits(runner) - exact).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_quantized_base_is_pefts(quantized: Path, tmp_path: Path) -> None:
    tiny_model(**WIDE).save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base")
    plain, adapted = load((quantized, None), (quantized, adapter))
    assert plain.base is adapted.base
    torch.testing.assert_close(logits(adapted), own_logits(quantized, adapter), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(plain), own_logits(quantized), rtol=1e-4, atol=1e-4)
    assert (logits(adapted) - logits(plain)).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_either_dtype_is_served(quantized: Path, dtype: str) -> None:
    [runner] = load((quantized, None), dtype=dtype)
    assert logits(runner).isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("vnni")
def test_int8_leaves_it_as_it_is(quantized: Path) -> None:
    """Unless it was unpacked to plain weights, which are then rounded."""
    spec = ModelSpec(str(quantized), False, quantization="int8")
    [(runner, _)] = load_models(WorkerSpec("cpu", "float32", 1, 10**6, {"m": spec})).values()
    rounded = any(isinstance(module, Int8Linear) for module in runner._model.modules())
    assert rounded == (not is_quantized(runner.base.model))
    if not rounded:
        torch.testing.assert_close(logits(runner), own_logits(quantized), rtol=1e-4, atol=1e-4)


def test_what_is_unpacked_while_it_loads_is_packed_as_plain_models_are(tmp_path: Path) -> None:
    [runner] = load((save_quantized(tmp_path / "fp8", "fp8"), None))
    assert any(isinstance(module, PackedLinear) for module in runner._model.modules())


def spec(folder: Path) -> ModelSpec:
    return ModelSpec(str(folder), False, key="large_models.big.model")


def refusal(folder: Path, device: torch.device = CPU) -> str:
    """Why the model is refused, from its `config.json` alone."""
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UnsupportedModelError) as caught:
        check_quantization(spec(folder), [device])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"large_models.big.model: {folder} is quantized by ")
    return message


@pytest.mark.parametrize(
    ("quantization", "module", "message"),
    [
        ({"load_in_8bit": True}, "bitsandbytes", "by bitsandbytes .*pip install 'w2s-server"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "by bitsandbytes .*pip install 'w2s"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors", "by compressed-tensors .*pip install 'w2s"),
        ({"quant_method": "torchao"}, "torchao", "by torchao .*pip install 'w2s-server"),
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel", "by gptq .*pip install gptqmodel optimum"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel", "by awq .*pip install gptqmodel triton"),
        ({"quant_method": "auto-round"}, "auto_round", "by auto-round .*pip install auto-round"),
        ({"quant_method": "aqlm"}, "aqlm", "by aqlm .*pip install 'aqlm"),
        ({"quant_method": "quanto"}, "optimum", "by quanto .*pip install optimum-quanto"),
        ({"quant_method": "hqq"}, "hqq", "by hqq .*pip install hqq"),
        ({"quant_method": "quark"}, "quark", "by quark .*pip install amd-quark"),
        ({"quant_method": "sinq"}, "sinq", "by sinq .*pip install sinq"),
        ({"quant_method": "fouroversix"}, "fouroversix", "by fouroversix .*pip install fouroversix"),
    ],
)
def test_a_method_whose_package_is_missing_says_what_to_install(
    quantization: dict[str, Any], module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    hidden = "w2s_core.worker.quantized_checkpoints.importlib.util.find_spec"
    monkeypatch.setattr(hidden, lambda name: None if name.partition(".")[0] == module else find(name))
    assert re.search(message, refusal(claim(save_tiny(tmp_path / "model"), quantization)))


@pytest.mark.parametrize("method", ["eetq", "fbgemm_fp8", "fp_quant", "higgs", "nvfp4", "spqr", "vptq"])
def test_a_method_without_cpu_kernels_says_so(method: str, tmp_path: Path) -> None:
    message = refusal(claim(save_tiny(tmp_path / "model"), {"quant_method": method}))
    assert message.endswith(f"is quantized by {method} (quantization_config in its config.json), which needs a GPU.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_on_a_gpu_it_says_what_to_install(tmp_path: Path) -> None:
    assert "pip install fbgemm-gpu" in refusal(claim(save_tiny(tmp_path / "m"), {"quant_method": "fbgemm_fp8"}), GPU)


def said_of(model: ModelSpec) -> str:
    """The method of a model that is served, or why it is refused."""
    try:
        return str(check_quantization(model, [CPU]))
    except UnsupportedModelError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")
def test_every_method_of_transformers_is_served_or_refused_by_name(tmp_path: Path) -> None:
    """Whatever it needs: the line names the method."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    folder = save_tiny(tmp_path / "model")
    for name in AUTO_QUANTIZATION_CONFIG_MAPPING:
        method = name.removesuffix("_4bit").removesuffix("_8bit")
        claim(folder, {"quant_method": method})
        said = said_of(spec(folder))
        assert said == method or re.fullmatch(rf"large_models\.big\.model: .* is quantized by {method} .*", said)


@pytest.mark.parametrize("quantization", [{"quant_method": "magic"}, {"bits": 4}])
def test_an_unknown_method_is_refused(quantization: dict[str, Any], tmp_path: Path) -> None:
    """transformers would skip it and load random weights."""
    assert "which transformers does not know; it knows aqlm," in refusal(claim(save_tiny(tmp_path / "m"), quantization))


def test_a_models_text_config_counts(tmp_path: Path) -> None:
    import json

    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {"quantization_config": {"quant_method": "magic"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "quantized by magic" in refusal(folder)


def test_weights_that_no_layer_reads_are_refused(tmp_path: Path) -> None:
    """transformers would load such a model with what it does read."""
    folder = save_quantized(tmp_path / "model", "fp8")
    claim(folder, {"quant_method": "mxfp4"})
    with pytest.raises(UnsupportedModelError, match=r"big\.model: .*by mxfp4 .* does not read its `.*scale_inv`"):
        load_models(WorkerSpec("cpu", "float32", 1, 10**6, {"big": spec(folder)}))


@pytest.mark.filterwarnings("ignore")
def test_what_fails_while_it_loads_is_one_line_too(tmp_path: Path) -> None:
    folder = claim(save_tiny(tmp_path / "model"), {"quant_method": "bitnet"})
    with pytest.raises(
        UnsupportedModelError, match=r"^large_models\.big\.model: .*by bitnet .*: RuntimeError: [^\n]*$"
    ):
        load_models(WorkerSpec("cpu", "float32", 1, 10**6, {"big": spec(folder)}))


def test_a_plain_model_is_none(tmp_path: Path) -> None:
    assert check_quantization(spec(save_tiny(tmp_path / "model")), [CPU]) is None


def test_nothing_is_loaded_before_all_are_checked(tmp_path: Path) -> None:
    """The first model has no weights at all."""
    empty = save_tiny(tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    magic = claim(save_tiny(tmp_path / "magic"), {"quant_method": "magic"})
    specs = {"empty": spec(empty), "magic": spec(magic)}
    with pytest.raises(UnsupportedModelError, match="quantized by magic"):
        load_models(WorkerSpec("cpu", "float32", 1, 10**6, specs))
