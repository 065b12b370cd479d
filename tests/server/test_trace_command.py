"""`w2s trace`: what it draws of real answers and streams, and one line for a file that it cannot draw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from server.cli import main
from server.commands.trace_drawing import draw_search
from server.commands.trace_file import SavedCandidate, SavedSearch
from tests.fakes import FakeLargeModel, fake_engine, letters
from tests.server.conftest import Connect

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
ASK = {"model": "guided", "prompt": ["x", "y"], "seed": 2, "max_tokens": 12}
WIDE = {"beam_width": 3, "successors": 3, "chunk_length": 2}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trace", *map(str, arguments)])


def drawn(path: Path) -> ET.Element:
    return ET.fromstring(path.read_text(encoding="utf-8"))


def boxes(svg: ET.Element) -> list[tuple[str, str]]:
    """(fate, title) of each candidate."""
    groups = [group for group in svg.iter(f"{SVG}g") if group.get("class")]
    return [(str(group.get("class")), str(group.findtext(f"{SVG}title"))) for group in groups]


def keep(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


async def saved(connect: Connect, path: Path, trace: object, eos: float = 0.1, **fields: Any) -> str:
    """Writes an answer, as it was received, to a file."""
    client = await connect(fake_engine(FakeLargeModel(letters("ab", eos=eos))))
    body = {**ASK, "guidance": {**WIDE, "trace": trace}, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    keep(path, response.text)
    return response.text


@pytest.mark.parametrize("prompt", [0, 1])
async def test_an_answer_and_a_stream_are_drawn_alike(connect: Connect, tmp_path: Path, prompt: int) -> None:
    files = {"answer": tmp_path / "answer.json", "stream": tmp_path / "stream.txt", "lines": tmp_path / "chunks.jsonl"}
    text = await saved(connect, files["answer"], True)
    stream = await saved(connect, files["stream"], "stream", stream=True)
    chunks = [frame.removeprefix("data: ") for frame in stream.split("\n\n") if "round" in frame]
    files["lines"].write_text("\n".join(chunks), encoding="utf-8")
    pictures = {}
    for name, path in files.items():
        found = run(path, "--out", tmp_path / f"{name}.svg", "--prompt", prompt, "--title", "x < y & z")
        assert (found.exit_code, found.output) == (0, "")
        pictures[name] = drawn(tmp_path / f"{name}.svg")
    tree = json.loads(text)["guidance"]["tree"][prompt]
    expected = sorted(node["text"] for chunk in tree for node in chunk)
    assert sorted(title.rpartition("\n\n")[0] for _, title in boxes(pictures["answer"])) == expected
    assert boxes(pictures["stream"]) == boxes(pictures["lines"])
    assert set(boxes(pictures["answer"])) <= set(boxes(pictures["stream"]))
    others = set(boxes(pictures["stream"])) - set(boxes(pictures["answer"]))
    assert {fate for fate, _ in others} <= {"merged", "finished", "pruned"}
    for svg in pictures.values():
        assert svg.findtext(f"{SVG}title") == "x < y & z"
        assert len(list(svg.iter(f"{SVG}path"))) == len(boxes(svg))


async def test_the_boldest_path_leads_to_the_answer(connect: Connect, tmp_path: Path) -> None:
    text = await saved(connect, tmp_path / "answer.json", True, eos=0.0)
    run(tmp_path / "answer.json", "--out", tmp_path / "tree.svg")
    svg = drawn(tmp_path / "tree.svg")
    bold = [str(path.get("d")) for path in svg.iter(f"{SVG}path") if "answer" in str(path.get("class"))]
    assert len(bold) == json.loads(text)["guidance"]["chunks"] // 2  # of two prompts
    x, y = bold[-1].split()[-2:]
    [last] = [
        group.findtext(f"{SVG}title")
        for group in svg.iter(f"{SVG}g")
        for box in group.findall(f"{SVG}rect")
        if box.get("x") == x and float(str(box.get("y"))) + 14 == float(y)
    ]
    assert str(last).startswith(json.loads(text)["choices"][0]["text"] + "\n\n")


async def test_a_tree_that_was_cut_says_so(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2s_core.engine.planning.MAX_TREE_CHARACTERS", 2 * 20 * 200)
    for trace, stream in ((True, False), ("stream", True)):
        await saved(connect, tmp_path / "saved", trace, eos=0.0, stream=stream)
        assert run(tmp_path / "saved", "--out", tmp_path / "tree.svg").exit_code == 0
        assert "Later chunks are missing." in (tmp_path / "tree.svg").read_text(encoding="utf-8")


TREE = {"id": 0, "parent": None, "text": "a", "score": 1.0, "rank": 1.0, "scores": {}, "finish_reason": None}
NODE = {**TREE, "kept": True}
DELTA = {**TREE, "offset": 0, "fate": "kept"}


def with_tree(*chunks: list[Any]) -> str:
    return json.dumps({"guidance": {"tree": [list(chunks)]}})


def with_rounds(*rounds: dict[str, Any]) -> str:
    found = [
        {"prompt": 0, "choices": [0], "chunk": i, "candidates": [DELTA], **r} for i, r in enumerate(rounds, start=1)
    ]
    return "\n".join("data: " + json.dumps({"id": "x", "guidance": {"round": r}}) + "\n" for r in found)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no search tree"),
        ("[]", "holds no search tree"),
        ("hello", "line 1 is neither JSON nor an event"),
        ("data: {}\n\ndata: {", "is cut before a chunk of its search is whole"),
        ("data: {}\n\ndata: {\n", "line 3 is neither"),
        ("data: {}\n\ndata: {\n\n" + with_rounds({}), "line 3 is neither"),
        ('{"choices": [], "guidance": {"method": "cbs"}}', "holds no search tree"),
        ('{"choices": [], "guidance": null}', "holds no search tree"),
        ("[" * 100_000, "recursion"),
        (with_tree(), "holds no search tree"),
        (with_tree([]), "chunk 1 has no candidates"),
        (with_tree([{**NODE, "id": "0"}, {}]), "0.0.1.id: Field required"),
        (with_tree([{**NODE, "score": "much"}]), "tree: 0.0.0.score: "),
        (with_tree([{**NODE, "score": float("nan")}]), "NaN is not JSON"),
        (with_tree([NODE]).replace("1.0", "1e999"), "the score of candidate 0 is too large"),
        (with_tree([NODE], [{**NODE, "parent": 3}]), "chunk 2: candidate 0 has a parent (3) that is none"),
        (
            with_rounds({"candidates": [{**DELTA, "offset": 1}]}),
            "the offset of candidate 0 is not in its parent's text",
        ),
        (with_rounds({}, {"candidates": [{**DELTA, "parent": 0, "offset": 2}]}), "the offset of candidate 0"),
        (with_rounds({"chunk": 0}), "chunk 1 of prompt 0 is missing"),
        (with_rounds({}, {"chunk": 1}), "chunk 2 of prompt 0 is missing"),
        (with_rounds({"candidates": [{**DELTA, "fate": "lost"}]}), "candidates.0.fate: "),
        (with_rounds({}) + with_rounds({}).replace('"x"', '"y"'), "holds more than one response"),
        (with_rounds({"truncated": True}) + "data: [DONE]", "holds no search tree"),
    ],
)
def test_a_file_that_cannot_be_drawn_is_one_line(tmp_path: Path, content: str, problem: str) -> None:
    path, out = tmp_path / "saved.json", tmp_path / "tree.svg"
    path.write_text(content, encoding="utf-8")
    found = run(path, "--out", out)
    assert found.exit_code == 2, found.output
    assert found.stderr.startswith(f"w2s: {path}: ")
    assert problem in found.stderr
    assert found.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_of_a_stream_that_was_cut_the_whole_chunks_are_drawn(tmp_path: Path) -> None:
    path, out = tmp_path / "stream", tmp_path / "tree.svg"
    whole = with_rounds({}, {"candidates": [{**DELTA, "parent": 0, "offset": 1, "text": "☃"}]}, {}).encode()
    whole = whole.replace(b"\\u2603", "☃".encode())  # as the server writes it
    first = whole.index(b"data:", 1)
    second = whole.index(b"data:", first + 1)
    for end, rounds in (
        (second + 9, 2),
        (second, 2),
        (second + 2, 2),
        (first + 40, 1),
        (whole.index("☃".encode()) + 1, 1),
    ):
        path.write_bytes(whole[:end])
        found = run(path, "--out", out)
        assert found.exit_code == 0, found.output
        assert found.stderr == f"w2s: {path}: is cut; drawn are the {rounds} chunks that are whole.\n"
        assert len(boxes(drawn(out))) == rounds
        assert "Later chunks are missing." in out.read_text(encoding="utf-8")
    path.write_bytes(whole[:second] + b"data: [DONE]\n")
    assert run(path, "--out", out).output == "", "it is whole"


def test_a_text_may_take_back_the_end_of_its_parents(tmp_path: Path) -> None:
    """As where a stop string began there."""
    first, second = {**DELTA, "text": "abc"}, {**DELTA, "parent": 0, "offset": 1, "text": "☃", "fate": "finished"}
    keep(tmp_path / "stream", with_rounds({"candidates": [first]}, {"candidates": [second]}))
    assert run(tmp_path / "stream", "--out", tmp_path / "tree.svg").exit_code == 0
    svg = drawn(tmp_path / "tree.svg")
    assert [title.partition("\n")[0] for _, title in boxes(svg)] == ["abc", "a☃"]
    assert "…☃" in [text.text for text in svg.iter(f"{SVG}text")]


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    for path, problem in ((tmp_path / "nothing", "No such file"), (tmp_path, "directory"), (picture, "not UTF-8")):
        found = run(path, "--out", tmp_path / "tree.svg")
        assert found.exit_code == 2
        assert found.stderr.startswith(f"w2s: {path}: cannot be read: ")
        assert problem in found.stderr
    assert list(tmp_path.iterdir()) == [picture]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(with_tree([NODE]), encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for out, problem in (
        ("nowhere/tree.svg", "No such file"),
        ("folder", "directory"),
        ("answer.json", "file to read"),
    ):
        found = run(path, "--out", tmp_path / out)
        assert found.exit_code == 2
        assert found.stderr.startswith(f"w2s: --out {tmp_path / out}: ")
        assert problem in found.stderr
    found = run(path, "--out", tmp_path / "tree.svg", "--prompt", 1)
    assert (found.exit_code, found.stderr) == (2, f"w2s: {path}: --prompt 1: it has the search of prompt 0\n")
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "folder"]
    assert path.read_text(encoding="utf-8") == with_tree([NODE])


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(
        st.lists(st.tuples(st.text(st.characters()), FINITE, st.sampled_from(["kept", "pruned", "merged", "finished"])),
                 min_size=1, max_size=4),
        min_size=1, max_size=4,
    ),
    st.text(),
)  # fmt: skip
def test_any_search_is_drawn_as_xml(rounds: list[list[tuple[str, float, Any]]], title: str) -> None:
    """Control characters, markup and half surrogate pairs, and scores of any size."""
    search = SavedSearch(
        [
            [
                SavedCandidate(None if number == 0 else 0, text, 0, score, score, {text: score}, "stop", fate)
                for text, score, fate in candidates
            ]
            for number, candidates in enumerate(rounds)
        ]
    )
    svg = ET.fromstring(draw_search(search, title))
    assert len(boxes(svg)) == sum(map(len, rounds))
    colours = [str(circle.get("fill")) for circle in svg.iter(f"{SVG}circle")]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


def test_the_lowest_score_is_the_darkest(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(
        with_tree([{**NODE, "id": i, "score": s} for i, s in enumerate((-2.0, 0.0, 7.0))]), encoding="utf-8"
    )
    run(path, "--out", tmp_path / "tree.svg")
    colours = [str(circle.get("fill")) for circle in drawn(tmp_path / "tree.svg").iter(f"{SVG}circle")]
    assert (colours[0], colours[2]) == ("#00224e", "#fee838")


def test_no_score_is_less_than_zero_by_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(with_tree([{**NODE, "id": i, "score": s} for i, s in enumerate((-0.001, -0.01))]), encoding="utf-8")
    run(path, "--out", tmp_path / "tree.svg")
    scores = [text.text for text in drawn(tmp_path / "tree.svg").iter(f"{SVG}text") if text.get("class") == "score"]
    assert scores[:2] == ["0.00", "−0.01"]


def test_the_page_shows_the_drawing_of_its_example(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    answers = re.findall(r"^```json\n(\{\n \"id\".*?)^```", page, re.MULTILINE | re.DOTALL)
    [answer] = [answer for answer in answers if '"tree"' in answer]
    (tmp_path / "answer.json").write_text(answer, encoding="utf-8")
    found = run(tmp_path / "answer.json", "--out", tmp_path / "tree.svg", "--title", "The acting in this film")
    assert found.exit_code == 0
    assert (tmp_path / "tree.svg").read_bytes() == (ROOT / "docs" / "images" / "tree.svg").read_bytes()
