"""Mutation testing: `python -m tests.mutations` breaks one line of the product at a time and runs tests that cover it.

It works on a copy of this checkout. A mutation is caught if one of its tests fails. The command exits with 1 if any
mutation survives. Each mutation is a fault that a user could notice, so a survivor means that a test is missing.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")
PASSED, FAILED, INTERRUPTED = 0, 1, 2  # exit codes of pytest; it is interrupted if a test file cannot be imported
CAUGHT, TIMED_OUT, SURVIVED = "caught", "caught (time-out)", "SURVIVED"


class Mutation(NamedTuple):
    """Replaces `old`, which occurs once in the file at `path`, by `new`. `tests` are files, separated by spaces."""

    path: str
    tests: str
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) or "(nothing)" for text in (self.old, self.new))
        return f"{self.path}: {old} → {new}"


class Outcome(NamedTuple):
    """`test` is the first one that failed."""

    verdict: str
    seconds: float
    test: str = ""


# Two lines each: where and by which tests, then what is replaced by what.
# fmt: off
MUTATIONS = (
    Mutation("w2s_core/search/cbs.py", "tests/search/test_cbs.py",
             "distinct([*finished, *successors], last", "distinct([*successors], last"),
    Mutation("w2s_core/search/randomness.py", "tests/remote/test_large_responses.py",
             "_mix(key, _CALL, position, attempt) >> 1", "_mix(key, _CALL, position) >> 1"),
    Mutation("w2s_core/large/successors.py", "tests/text/test_text.py",
             'ended, finish_reason = False, "stop"', 'finish_reason = "stop"'),
    Mutation("w2s_core/search/tree.py", "tests/engine/test_engine.py",
             "self._end_round(round_.candidates)", "self._end_round(round_.beam)"),
    Mutation("w2s_core/search/tree.py", "tests/engine/test_round_events.py",
             "[*(y.parent for y in round_.candidates), *round_.carried]",
             "[*(y.parent for y in round_.candidates), *(y.parent for y in round_.carried)]"),
    Mutation("w2s_core/search/tree.py", "tests/engine/test_round_events.py",
             "len(text) if y.text.startswith(text) else", "len(text) if text else"),
    Mutation("w2s_core/search/tree.py", "tests/engine/test_round_events.py",
             "scored.get(_answer(y))", "None"),
    Mutation("server/api/answers.py", "tests/server/api/test_streamed_trace.py",
             "continuous_usage_stats and choices else None", "continuous_usage_stats else None"),
    Mutation("server/settings/config.py", "tests/server/settings/test_config.py",
             'if guidance.trace == "stream":', "if False:"),
    Mutation("w2s_core/search/tree.py", "tests/engine/test_round_events.py",
             "self._take_room(node.text for node in nodes)", "self._take_room(y.text for y in unique)"),
    Mutation("w2s_core/engine/reasoning_run.py", "tests/engine/test_round_events.py",
             "sampled_tokens=sampler.sampled_tokens + event.sampled_tokens", "sampled_tokens=event.sampled_tokens"),
    Mutation("w2s_core/engine/prompt_run.py", "tests/engine/test_round_events.py",
             "committed = streamers[0].sent_characters", "committed = 0"),
    Mutation("server/commands/trace_file.py", "tests/server/test_trace_command.py",
             "text, offset, fate = before[: node.offset] + node.text", "text, offset, fate = before + node.text"),
    Mutation("server/commands/trace_file.py", "tests/server/test_trace_command.py",
             "len(responses) > 1", "len(responses) > 2"),
    Mutation("server/commands/trace_drawing.py", "tests/server/test_trace_command.py",
             '_ILLEGAL.sub("\\ufffd", text)', "text"),
    Mutation("server/commands/trace_drawing.py", "tests/server/test_trace_command.py",
             "key=lambda i: rounds[-1][i].rank, default", "key=lambda i: -rounds[-1][i].rank, default"),
    Mutation("server/commands/trace.py", "tests/server/test_trace_command.py",
             "unfinished.unlink(missing_ok=True)", "pass"),
    Mutation("server/api/schemas/base.py", "tests/server/api/test_guidance_fields.py",
             'self.guidance.trace == "stream" and not self.stream', 'self.guidance.trace == "stream" and False'),
    Mutation("w2s_core/engine/early_scoring.py", "tests/engine/test_early_scoring.py",
             "for parent in range(len(beam)) for y in arrived[parent]", "for ys in arrived.values() for y in ys"),
    Mutation("w2s_core/engine/output.py", "tests/text/test_offsets.py",
             "start=min(span.start, len(y.text))", "start=span.start"),
    Mutation("w2s_core/text/offsets.py", "tests/text/test_offsets.py",
             "if incomplete or not data else", "if incomplete else"),
    Mutation("w2s_core/text/token_bytes.py", "tests/text/test_offsets.py",
             'None if added[token]["special"] else content.encode()', "None"),
    Mutation("w2s_core/text/retokenizer.py", "tests/text/test_retokenizer.py",
             "if prefix is not None and y.text.startswith(text[: prefix.characters + 2]):",
             "if prefix is not None:"),
    Mutation("w2s_core/text/special_tokens.py", "tests/text/test_special_tokens.py",
             "yield from _texts_in(key)", "pass"),
    Mutation("w2s_core/text/tokenizer.py", "tests/text/test_retokenizer.py",
             'step.get("use_regex") and not step.get("add_prefix_space")', 'step.get("use_regex")'),
    Mutation("w2s_core/text/tokenizer.py", "tests/text/test_special_tokens.py",
             "if bos and adds_bos else text", "if bos else text"),
    Mutation("w2s_core/engine/token_budget.py", "tests/engine/test_planning.py",
             "min(request.default_max_tokens or 1, ", "min(request.default_max_tokens or 0, "),
    Mutation("w2s_core/engine/token_budget.py", "tests/engine/test_planning.py",
             "if free < needed:", "if free <= needed:"),
    Mutation("w2s_core/engine/admission.py", "tests/engine/test_admission.py",
             "fits_now = not self._queue and self", "fits_now = self"),
    Mutation("w2s_core/engine/prompt_run.py", "tests/engine/test_engine.py",
             "[beam[-1]] * (n", "[beam[0]] * (n"),
    Mutation("w2s_core/engine/prompt_run.py", "tests/engine/test_engine.py",
             "[min(y.length for y in beam)]", "[max(y.length for y in beam)]"),
    Mutation("w2s_core/engine/engine.py", "tests/engine/test_engine.py",
             "stack.callback(ticket.cancel)", "pass"),
    Mutation("w2s_core/telemetry/metrics.py", "tests/telemetry/test_metrics.py",
             "inc(len(round_.candidates) - kept)", "inc(proposed - kept)"),
    Mutation("w2s_core/engine/observer.py", "tests/telemetry/test_metrics.py",
             "self._progress.truncated |= event", "self._progress.truncated = event"),
    Mutation("w2s_core/search/repetition.py", "tests/search/test_selection.py", "len(text) < state.read", "False"),
    Mutation("w2s_core/search/selection.py", "tests/search/test_selection.py", "_ROUND + self._round", "_ROUND"),
    Mutation("w2s_core/engine/thought_sampler.py", "tests/engine/test_thoughts.py", "        stop=(),\n", ""),
    Mutation("w2s_core/telemetry/tracing.py", "tests/telemetry/test_tracing.py",
             '_OK_OUTCOMES = ("stop", "length", "cancelled")', '_OK_OUTCOMES = ("stop", "length")'),
    Mutation("w2s_core/worker/scheduler.py", "tests/worker/test_scheduler_failures.py",
             "self.trees[key].evict()", "pass"),
    Mutation("w2s_core/worker/scheduler.py", "tests/worker/test_scheduler.py",
             "step.without_slots[:1],", "step.without_slots,"),
    Mutation("w2s_core/worker/model_group.py", "tests/worker/test_model_group.py",
             "promised |= step.batch.logits_rows.keys()", "pass"),
    Mutation("w2s_core/worker/lora.py", "tests/worker/test_model_group.py",
             "rows = self._logits if changed is head else self._tokens", "rows = self._tokens"),
    Mutation("w2s_core/worker/tasks.py", "tests/worker/test_scheduler.py",
             "len(r.logprobs) >= self", "len(r.logprobs) > self"),
    Mutation("w2s_core/worker/batch.py", "tests/worker/test_scheduler.py",
             "session.new_slots += new_slots", "session.new_slots = new_slots"),
    Mutation("w2s_core/worker/token_tree.py", "tests/worker/test_token_tree.py",
             "self._slot_positions[: len(assigned)] = assigned", "pass"),
    Mutation("w2s_core/worker/kv_cache.py", "tests/worker/test_scheduler.py",
             "region.size = min(region.size, size)", "region.size = max(region.size, size)"),
    Mutation("w2s_core/worker/prefix_cache.py", "tests/worker/test_scheduler.py",
             "self._prompts[tokens] = self._prompts.pop(tokens)", "pass"),
    Mutation("w2s_core/worker/sampling.py", "tests/worker/test_sampling.py",
             "torch.where(top_k == vocabulary, whole, _logsumexp(kept))", "_logsumexp(kept)"),
    Mutation("w2s_core/worker/logits_processors.py", "tests/worker/test_logits_processors.py",
             "sampling.temperature * math.log(sampling.min_p)", "math.log(sampling.min_p)"),
    Mutation("w2s_core/worker/grammar_masks.py", "tests/worker/test_grammar_masks.py",
             "matcher = source.deep_copy()", "matcher = source"),
    Mutation("w2s_core/worker/grammar_steps.py", "tests/worker/test_grammar_masks.py",
             "JobFailed(task.job.id, message, field=grammar.field)", "JobFailed(task.job.id, message)"),
    Mutation("w2s_core/worker/top_logprobs.py", "tests/worker/test_logprobs.py",
             "(logits > chosen)", "(logits >= chosen)"),
    Mutation("w2s_core/worker/attention.py", "tests/worker/test_token_tree.py",
             "self.key_positions < window", "self.key_positions <= window"),
    Mutation("w2s_core/pool/session.py", "tests/worker/test_engine_on_workers.py",
             "self._worker.rows -= self._rows", "pass"),
    Mutation("w2s_core/pool/pool.py", "tests/pool/test_restarts.py",
             "return min(infos, key=lambda info: info.kv_slots)", "return max(infos, key=lambda info: info.kv_slots)"),
    Mutation("w2s_core/pool/process.py", "tests/pool/test_restarts.py",
             "WORKER_ENVIRONMENT | os.environ", "os.environ | WORKER_ENVIRONMENT"),
    Mutation("w2s_core/pool/backoff.py", "tests/pool/test_restarts.py",
             "        self._started_at = None\n", ""),
    Mutation("w2s_core/pool/stderr.py", "tests/pool/test_stderr.py",
             "part[: _MAX_LINE_BYTES - len(self._bytes)]", "part[:_MAX_LINE_BYTES]"),
    Mutation("w2s_core/structured/grammar_checker.py", "tests/structured/test_grammar_checker.py",
             'self._end_process()\n            raise RequestError("The', 'raise RequestError("The'),
    Mutation("w2s_core/structured/grammar_compiling.py", "tests/structured/test_grammar_checker.py",
             "high - low >= 1", "high - low > 1"),
    Mutation("w2s_core/structured/tool_parsing.py", "tests/structured/test_tool_parsing.py",
             "self._calls_left -= len(kept)", "pass"),
    Mutation("w2s_core/structured/tool_formats.py", "tests/structured/test_tool_parsing.py",
             "if entries and all(calls) else", "if entries and any(calls) else"),
    Mutation("w2s_core/structured/tool_grammar.py", "tests/structured/test_tool_grammar.py",
             ' | {"type": "object"}', ""),
    Mutation("w2s_core/pool/session.py", "tests/worker/test_engine_on_workers.py",
             "len(update.tokens) + update.ended", "len(update.tokens)"),
    Mutation("w2s_core/large/remote.py", "tests/remote/test_large_responses.py",
             "sorted(completion.choices, key=lambda choice: choice.index)", "list(completion.choices)"),
    Mutation("w2s_core/large/dialects.py", "tests/remote/test_large_responses.py",
             "logprobs[:size], ended, None", "logprobs[:kept], ended, None"),
    Mutation("w2s_core/large/dialects.py", "tests/remote/test_large_responses.py",
             "tokens[:length], False, None", "tokens[:length], ended, ending"),
    Mutation("w2s_core/large/text_tokens.py", "tests/remote/test_large_responses.py",
             "if token and not decoder", "if not decoder"),
    Mutation("w2s_core/large/parameters.py", "tests/remote/test_large_requests.py",
             "min(missing, length)", "missing"),
    Mutation("w2s_core/remote/breaker.py", "tests/remote/test_breaker.py",
             "self._failures += counts", "self._failures += 1"),
    Mutation("w2s_core/remote/faults.py", "tests/remote/test_faults.py",
             "tzinfo=date.tzinfo or UTC", "tzinfo=UTC"),
    Mutation("w2s_core/remote/provider.py", "tests/remote/test_failover.py",
             "if not fault.unhealthy:\n            endpoint.breaker.record_success()",
             "if not fault.unhealthy:\n            endpoint.breaker.record_cancelled(probe=probe)"),
    Mutation("w2s_core/remote/provider.py", "tests/remote/test_failover.py",
             "self._clock() + min(fault.retry_after_s, MAX_RETRY_AFTER_S)", "self._clock() + fault.retry_after_s"),
    Mutation("w2s_core/remote/endpoints.py", "tests/remote/test_endpoints.py",
             "endpoint.calls if affinity is None else 0", "endpoint.calls"),
    Mutation("w2s_core/remote/exchange.py", "tests/remote/test_provider.py",
             'if answer.get("error"):', 'if "error" in answer:'),
    Mutation("w2s_core/scorers/remote.py", "tests/remote/test_pair_calls.py",
             "await session.aclose()", "pass"),
    Mutation("w2s_core/scorers/pair_model.py", "tests/remote/test_pairs.py",
             "and (y.ended or not y.finished) else", "else"),
    Mutation("w2s_core/scorers/likelihood.py", "tests/engine/test_engine.py",
             "max(1, y.length)", "max(1, len(y.tokens))"),
    Mutation("w2s_core/scorers/local.py", "tests/worker/test_scoring_fixed_texts.py",
             "sum(result.tokens_run for result in results)", "results[0].tokens_run"),
    Mutation("server/http/sse.py", "tests/server/http/test_disconnect.py",
             "self._request_id) + DONE, more", "self._request_id), more"),
    Mutation("server/api/answers.py", "tests/server/api/test_answers.py",
             "Usage.of(event.prompt_tokens, self._usage.completion_tokens)",
             "Usage.of(event.prompt_tokens, event.completion_tokens)"),
    Mutation("server/errors.py", "tests/server/api/test_requests.py",
             "missing and position == len(loc) - 1", "missing"),
    Mutation("server/http/middleware.py", "tests/server/test_errors.py",
             "if received > limit:", "if received >= limit:"),
    Mutation("server/http/protocol.py", "tests/server/http/test_slow_clients.py",
             "            self._handle = None\n", ""),
    Mutation("server/settings/api_keys.py", "tests/server/access/test_keys.py",
             "stat.S_IROTH", "stat.S_IRGRP"),
    Mutation("server/access/limits.py", "tests/server/access/test_limits.py",
             "math.floor(wait_s) + 1", "math.ceil(wait_s)"),
    Mutation("server/settings/config.py", "tests/server/settings/test_config.py",
             '"best_of_n") and rows > self', '"best_of_n") and rows >= self'),
    Mutation("server/http/shutdown.py", "tests/server/http/test_shutdown.py",
             "return should_exit or not remaining_s or not", "return should_exit or not"),
    Mutation("server/http/disconnect.py", "tests/server/http/test_disconnect.py",
             "        await asyncio.wait({work_task, disconnect_task})\n", ""),
    Mutation("server/api/tool_calls.py", "tests/server/api/test_tools.py",
             "choice.tokens = []", "pass"),
    Mutation("server/api/schemas/fields.py", "tests/server/api/test_requests.py",
             "depth > MAX_NESTING", "depth >= MAX_NESTING"),
)
# fmt: on


@contextmanager
def copy_of_checkout() -> Iterator[Path]:
    """A temporary folder with every file that git tracks, as it is in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        for name in filter(None, listed.split("\0")):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        yield Path(folder)


def run_tests(tree: Path, tests: str, limit_s: float) -> Outcome:
    """Runs pytest in `tree` until the first failure, for at most `limit_s` seconds."""
    # No .pyc files: Python would not notice a second change of a file within a second.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    began, pipe = time.monotonic(), subprocess.PIPE
    command = [*PYTEST, *tests.split()]
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Outcome(TIMED_OUT, time.monotonic() - began)
    if process.returncode not in (PASSED, FAILED, INTERRUPTED):
        raise click.ClickException(f"pytest {tests} exited with {process.returncode}:\n{output}{errors}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    verdict = SURVIVED if process.returncode == PASSED else CAUGHT
    return Outcome(verdict, time.monotonic() - began, failed[1] if failed else "")


def try_mutation(tree: Path, mutation: Mutation, tests: str, limit_s: float) -> Outcome:
    """Applies the mutation in `tree`, runs the tests and restores the file."""
    file = tree / mutation.path
    original = file.read_text()
    file.write_text(original.replace(mutation.old, mutation.new))
    try:
        return run_tests(tree, tests, limit_s)
    finally:
        file.write_text(original)


def check(mutations: Sequence[Mutation]) -> None:
    """Raises ClickException unless every `old` occurs once, the mutated file parses, and the tests exist."""
    faults = []
    for mutation in mutations:
        source = file.read_text() if (file := ROOT / mutation.path).exists() else ""
        if source.count(mutation.old) != 1 or mutation.old == mutation.new:
            faults.append(f"does not apply: {mutation}")
        ast.parse(source.replace(mutation.old, mutation.new), mutation.path)
        faults += [f"no such test file: {test}" for test in mutation.tests.split() if not (ROOT / test).exists()]
    if faults:
        raise click.ClickException("\n".join(faults))


@click.command()
@click.option("--only", default="", metavar="PATTERN", help="Only mutations whose path or text this regex matches.")
@click.option("--list", "listing", is_flag=True, help="Print the mutations and exit.")
@click.option("--check", "checking", is_flag=True, help="Print those that do not fit the code any more and exit.")
@click.option("--whole", is_flag=True, help="Run the whole suite for those that survive their own tests.")
@click.option("--limit", default=300.0, show_default=True, help="Seconds per mutation, ten times that for the suite.")
def main(only: str, listing: bool, checking: bool, whole: bool, limit: float) -> None:
    """Try every mutation and print which ones the tests catch."""
    mutations = [mutation for mutation in MUTATIONS if re.search(only, str(mutation))]
    check(mutations)
    if listing:
        click.echo("\n".join(f"{mutation}\n    {mutation.tests}" for mutation in mutations))
    if listing or checking:
        return
    began, verdicts = time.monotonic(), Counter[str]()
    with copy_of_checkout() as tree:
        files = " ".join(dict.fromkeys(" ".join(mutation.tests for mutation in mutations).split()))
        unchanged = run_tests(tree, files, 10 * limit)
        if unchanged.verdict != SURVIVED:
            raise click.ClickException(f"The tests fail without any mutation: {unchanged.test or 'time-out'}")
        for mutation in mutations:
            outcome = try_mutation(tree, mutation, mutation.tests, limit)
            if whole and outcome.verdict == SURVIVED:
                outcome = try_mutation(tree, mutation, "tests", 10 * limit)
            verdicts[outcome.verdict] += 1
            click.echo(f"{outcome.verdict:<17} {outcome.seconds:4.0f} s  {mutation}  {outcome.test}".rstrip())
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in (CAUGHT, TIMED_OUT, SURVIVED))
    click.echo(f"{len(mutations)} mutations in {time.monotonic() - began:.0f} s: {counts}")
    sys.exit(verdicts[SURVIVED] > 0)


if __name__ == "__main__":
    main()
