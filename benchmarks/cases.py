"""The benchmark cases and their targets: speeds of this engine, and ratios of two systems' speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.figures import Figure, Trial, ratios, speeds
from benchmarks.settings import DEMO, EQUAL, Settings, Workload
from benchmarks.systems import System

IDLE_SHARE = 0.05  # of the machine: a trial during which other processes used no more is undisturbed
_SHORT = "demo pair, prompt 20"  # the group of most cases


@dataclass(frozen=True, slots=True)
class Run:
    """One system with one workload."""

    system: System
    load: Workload

    def __str__(self) -> str:
        what = f"{self.load.rows} plain rows" if self.load.pair is None else f"guided {self.load.pair}"
        return f"{self.system}, {what}, T={self.load.tokens}"


@dataclass(frozen=True, slots=True)
class Case:
    """A figure to measure: the speed of `top`, or with `bottom` the ratio top ÷ bottom of their speeds.

    The runs of all cases of a `group` take turns, so a run belongs to one group only. The target is a lower bound, or
    an upper bound if `at_most`.
    """

    name: str
    group: str
    title: str
    target: float
    top: Run
    bottom: Run | None = None
    at_most: bool = False

    @property
    def runs(self) -> list[Run]:
        return [self.top] if self.bottom is None else [self.top, self.bottom]

    def figure(self, trials: Mapping[Run, Sequence[Trial]]) -> Figure:
        systems = {str(run): speeds(trials[run]) for run in self.runs}
        top, bottom = trials[self.top], None if self.bottom is None else trials[self.bottom]
        value = speeds(top) if bottom is None else ratios(top, bottom)
        used = [trial for run in self.runs for trial in trials[run]]
        return Figure(self.name, self.title, self.target, self.at_most, value, systems, _note(used))

    def missing(self, note: str) -> Figure:
        return Figure(self.name, self.title, self.target, self.at_most, note=note)


def _note(trials: Sequence[Trial]) -> str:
    """What makes the figure less reliable, or an empty string."""
    ended = sum(trial.ended for trial in trials)
    foreign = max(trial.foreign for trial in trials)
    notes = [f"{ended} answers ended early"] if ended else []
    return ", ".join(notes + [f"others took up to {foreign:.0%} of the machine"] * (foreign > IDLE_SHARE))


def cases(settings: Settings) -> list[Case]:
    """All cases, in the order of the table."""
    return [
        *_speeds(settings),
        *_in_int8(settings),
        *_against_naive(settings),
        *_against_others(settings),
        *_through_vllm(settings),
    ]


def _speeds(settings: Settings) -> list[Case]:
    """Committed tokens per second of guided requests, scoring included."""
    t65, t120 = settings.tokens(65), settings.tokens(120)

    def case(name: str, title: str, target: float, load: Workload) -> Case:
        return Case(name, _SHORT, f"guided, demo pair, {title}, tokens/s", target, Run("engine", load))

    return [
        case("speed-445", f"4/4/5, T={t65}", 12, Workload(20, t65, DEMO)),
        case("speed-2230", f"2/2/30, T={t120}", 16, Workload(20, t120, DEMO, w=2, k=2, length=30)),
        case("speed-four", f"4/4/5, T={t65}, 4 requests at once", 25, Workload(20, t65, DEMO, streams=4)),
    ]


def _in_int8(settings: Settings) -> list[Case]:
    """int8 against the precision of the run, and 16 rows at each engine's best on CPUs."""
    t64, t65, t120 = settings.tokens(64), settings.tokens(65), settings.tokens(120)
    plain = Workload(20, t64, None)

    def case(name: str, title: str, target: float, load: Workload) -> Case:
        return Case(name, _SHORT, f"int8 ÷ {settings.dtype}, {title}", target, Run("int8", load), Run("engine", load))

    return [
        case("int8-445", f"guided 4/4/5, T={t65}", 1.6, Workload(20, t65, DEMO)),
        case("int8-2230", f"guided 2/2/30, T={t120}", 1.5, Workload(20, t120, DEMO, w=2, k=2, length=30)),
        case("int8-four", f"guided 4/4/5, T={t65}, 4 requests at once", 1.4, Workload(20, t65, DEMO, streams=4)),
        case("int8-plain", f"one plain stream, T={t64}", 1.3, replace(plain, w=1, k=1)),
        Case(
            "int8-vllm",
            _SHORT,
            "this engine's plain sampling of 16 rows in int8 ÷ vLLM's in bfloat16",
            1.3,
            Run("int8", plain),
            Run("vllm bfloat16", plain),
        ),
    ]


def _against_naive(settings: Settings) -> list[Case]:
    t64, t128 = settings.tokens(64), settings.tokens(128)
    demo, long = Workload(20, t64, DEMO), Workload(512, t64, DEMO)
    equal, equal_long = Workload(20, t64, EQUAL), Workload(20, t128, EQUAL)

    def case(name: str, title: str, target: float, load: Workload, streams: int = 1) -> Case:
        top = Workload(load.prompt, load.tokens, load.pair, streams=streams)
        group = _SHORT if load == demo else name
        return Case(name, group, title, target, Run("engine", top), Run("naive", load))

    return [
        case("naive-demo-20", f"guided ÷ naive, demo pair, T={t64}, prompt 20", 2, demo),
        case("naive-demo-512", f"guided ÷ naive, demo pair, T={t64}, prompt 512", 5, long),
        case("naive-equal-64", f"guided ÷ naive, pair as large as the large model, T={t64}", 5, equal),
        case("naive-equal-128", f"guided ÷ naive, pair as large as the large model, T={t128}", 10, equal_long),
        case("naive-four", f"4 guided at once ÷ naive, demo pair, T={t64}", 4, demo, streams=4),
    ]


def _against_others(settings: Settings) -> list[Case]:
    t64 = settings.tokens(64)
    guided, plain = Workload(20, t64, DEMO), Workload(20, t64, None)
    eight = Workload(20, t64, None, w=1, k=1, streams=8)
    short, long = Workload(0, 64, DEMO, streams=8), Workload(0, 512, DEMO)
    engine = Run("engine", guided)
    generate = "guided ÷ transformers.generate of W·K rows, no scoring"
    own = "guided ÷ this engine's plain sampling of W·K rows"
    http = "plain through HTTP ÷ engine in-process, 8 streams"
    vllm = "this engine's plain sampling of 16 rows ÷ vLLM's"
    flat = "cost of scoring per token, T=512 ÷ T=64"
    return [
        Case("generate", _SHORT, generate, 1.3, engine, Run("generate", plain)),
        Case("own-plain", _SHORT, own, 0.9, engine, Run("engine", plain)),
        Case("http", "http", http, 0.95, Run("http", eight), Run("engine", eight)),
        Case("vllm", _SHORT, vllm, 1.15, Run("engine", plain), Run("vllm", plain)),
        Case("scoring-flat", "scoring", flat, 1.2, Run("scoring", short), Run("scoring", long), at_most=True),
    ]


def _through_vllm(settings: Settings) -> list[Case]:
    t64, t120 = settings.tokens(64), settings.tokens(120)

    def case(name: str, title: str, load: Workload) -> Case:
        what = f"guided through vLLM ÷ the same calls by a bare script, no scoring, {title}"
        return Case(name, "remote", what, 0.9, Run("remote", load), Run("bare client", load))

    return [
        case("remote-445", f"4/4/5, T={t64}", Workload(20, t64, DEMO)),
        case("remote-2230", f"2/2/30, T={t120}", Workload(20, t120, DEMO, w=2, k=2, length=30)),
    ]
