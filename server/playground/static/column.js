// One of the two columns: a served model with its settings, its answer, and what the answer cost.
import { ApiError, stream } from "./api.js";
import { announce, byId, count, h, nats, perFrame, seconds } from "./dom.js";
import { STEERING, buildRequest, effectiveGuidance, rowsOf, streamed } from "./request.js";
import { renderSettings, summarize } from "./settings.js";
import { Tree, tail } from "./tree.js";

const MAX_ROUNDS = 2000; // more would only make the picture slow

/** Settings, and the state of the answer. `onTree(column)` is called when its tree has grown or is complete. */
export class Column {
  model = "";
  temperature = null;
  guidance = {};
  request = null; // what the answer that is shown was asked by
  failure = null; // the ApiError that it ended in
  tree = null;
  answerNode = null;
  #models = new Map();
  #text = "";
  #thoughts = ""; // of a reasoning model, which come before its answer

  constructor(letter, onTree, onChange) {
    this.letter = letter;
    this.onTree = onTree;
    this.onChange = onChange;
    this.redraw = perFrame(() => this.#draw());
    this.#part("model").addEventListener("change", (event) => {
      this.model = event.target.value;
      for (const key of STEERING) delete this.guidance[key]; // a model is chosen for its own
      this.showSettings();
      this.onChange();
    });
  }

  #part(name) {
    return byId(`${name}-${this.letter}`);
  }

  get effective() {
    return effectiveGuidance(this, this.#models.get(this.model));
  }

  /** Offers these models, and the one that a link named even if it is not served: the server then says so. */
  offer(models) {
    this.#models = models;
    const names = [...new Set([...models.keys(), this.model])];
    const options = names.map((name) =>
      h("option", { value: name, selected: name === this.model }, models.has(name) ? name : `${name} (not served)`),
    );
    this.#part("model").replaceChildren(...options);
    this.showSettings();
  }

  showSettings() {
    renderSettings(this.#part("settings"), this, this.#models.get(this.model), () => {
      this.#showSummary();
      this.onChange();
    });
    this.#showSummary();
  }

  #showSummary() {
    const guidance = this.effective;
    const known = this.#models.has(this.model) || this.model === "";
    this.#part("title").textContent = !known ? "Not served" : guidance === null ? "Plain" : "Guided";
    this.#part("summary").textContent = summarize(guidance);
    const rows = rowsOf(guidance);
    const least = (guidance?.schedule ?? "constant") === "constant" ? "" : "at least "; // a schedule begins with more
    this.#part("cost").textContent =
      rows === null
        ? "W and K must be whole numbers above 0"
        : `Cost: ${least}${count(rows)} ${rows === 1 ? "row" : "rows"} at once`;
  }

  /** Asks for an answer and shows it while it comes. Returns when it is complete, stopped or failed. */
  async run(shared, signal) {
    const guidance = this.effective;
    this.request = this.#nextRequest(shared);
    this.#begin(guidance, this.request.body.max_tokens);
    const began = performance.now();
    const progress = { rows: rowsOf(guidance), finish: null, score: null, usage: null, report: null };
    const clock = setInterval(() => this.#showStats(progress, performance.now() - began), 100);
    try {
      for await (const chunk of stream(this.request.path, streamed(this.request.body, guidance !== null), signal)) {
        this.#take(chunk, progress);
      }
      this.#finish();
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(error);
      else progress.finish = "stopped by you";
    } finally {
      clearInterval(clock);
      this.#showStats(progress, performance.now() - began);
      this.#part("answer").setAttribute("aria-busy", "false");
      if (this.tree !== null) this.#endTree();
      this.redraw();
    }
  }

  /** What can be copied: the request of the answer that is shown (null if there is none), and the next one. */
  requests(shared) {
    return { shown: this.request, now: this.#nextRequest(shared) };
  }

  /** Says whether the settings are other than those of the answer that is shown. */
  compare(shared) {
    const same = this.request === null || JSON.stringify(this.request) === JSON.stringify(this.#nextRequest(shared));
    this.#part("changed").hidden = same;
  }

  #nextRequest(shared) {
    const guidance = this.effective;
    return { ...structuredClone(buildRequest(shared, this, guidance)), guided: guidance !== null };
  }

  #begin(guidance, maxTokens) {
    this.#text = "";
    this.#thoughts = "";
    this.failure = null;
    this.answerNode = null;
    this.tree = guidance === null || guidance.method === "eft" ? null : new Tree(expectedRounds(guidance, maxTokens));
    for (const part of ["committed", "thoughts"]) this.#part(part).replaceChildren(document.createTextNode(""));
    this.#part("error").hidden = true;
    this.#part("changed").hidden = true;
    this.#part("answer").setAttribute("aria-busy", "true");
    this.#part("answer").classList.remove("idle");
    this.redraw();
  }

  #take(chunk, progress) {
    const round = chunk.guidance?.round;
    if (round !== undefined) {
      this.tree?.add(round);
      Object.assign(progress, { sampled: round.sampled_tokens ?? progress.sampled });
      this.onTree(this);
    } else if (chunk.guidance) {
      progress.report = chunk.guidance;
      progress.sampled = chunk.guidance.sampled_tokens;
    }
    for (const choice of chunk.choices) {
      if (choice.index !== 0) continue;
      this.#thoughts += choice.delta?.reasoning_content ?? "";
      this.#text += choice.delta?.content ?? choice.text ?? "";
      progress.finish = choice.finish_reason ?? progress.finish;
      progress.score = choice.guidance?.score ?? progress.score;
    }
    progress.usage = chunk.usage ?? progress.usage;
    this.redraw();
  }

  #finish() {
    if (this.tree !== null && this.tree.size > 0) {
      this.answerNode = this.tree.leafOf(this.#text);
      this.tree.committed = Array.from(this.#text).length;
    }
    announce(`${this.request.guided ? "Guided" : "Plain"} answer: ${this.#text}`, this.letter);
  }

  /** The search has ended, in whatever way: nothing is left to be drawn later. */
  #endTree() {
    this.tree.growing = false;
    this.onTree(this);
  }

  #fail(error) {
    const shown = error instanceof ApiError ? error : new ApiError(0, "This page has failed", String(error));
    this.#part("error").replaceChildren(h("strong", {}, shown.title), h("span", {}, shown.message));
    this.#part("error").hidden = false;
    this.failure = shown;
  }

  /** Writes what is new of the answer, and behind it what the best candidate would say next. */
  #draw() {
    const box = this.#part("answer");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    append(this.#part("committed"), this.#text);
    append(this.#part("thoughts"), this.#thoughts);
    const best = box.getAttribute("aria-busy") === "true" ? this.tree?.best : null;
    this.#part("tentative").textContent = best ? tail(best.text, Math.max(this.tree.committed, Array.from(this.#text).length)) : "";
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  #showStats(progress, elapsedMs) {
    const facts = [
      ["time", seconds(elapsedMs / 1000)],
      ["rows", progress.rows === null ? null : count(progress.rows)],
      ["tokens", tokensOf(progress)],
      ["score", progress.score === null ? null : `${nats(progress.score)} nats`],
      ["end", progress.finish],
    ];
    const shown = facts.filter(([, value]) => value !== null && value !== undefined);
    this.#part("stats").replaceChildren(
      ...shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    );
  }
}

/** Adds to an element's text what it lacks of `text`. */
function append(element, text) {
  const written = element.firstChild;
  if (written !== null && written.length < text.length) written.appendData(text.slice(written.length));
}

/** What was drawn, pruned tokens included, and what of it was returned. */
function tokensOf({ sampled, usage }) {
  const drawn = sampled ?? usage?.completion_tokens;
  const parts = [drawn !== undefined && `${count(drawn)} sampled`, usage && `${count(usage.completion_tokens)} returned`];
  return parts.filter(Boolean).join(", ") || null;
}

/** How many rounds a search may take, for room on the screen. */
function expectedRounds(guidance, maxTokens) {
  const chunked = guidance.method === "cbs" || guidance.early_rejection > 0;
  const rounds = chunked ? Math.ceil(maxTokens / guidance.chunk_length) : 1;
  return Number.isFinite(rounds) ? Math.min(rounds, MAX_ROUNDS) : 1;
}
