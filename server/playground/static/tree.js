// The search tree as its rounds arrive: texts, parents, fates, and where each candidate stands in its column.

const SURROGATE = /[\ud800-\udfff]/;

/** The first `length` code points of a text, which is what the server counts. */
export function head(text, length) {
  return SURROGATE.test(text) ? Array.from(text).slice(0, length).join("") : text.slice(0, length);
}

/** What follows the first `length` code points. */
export function tail(text, length) {
  return text.slice(head(text, length).length);
}

/** The candidates of a search. `expected` is how many rounds there may be, for room on the screen. */
export class Tree {
  constructor(expected) {
    this.expected = expected;
    this.rounds = [];
    this.low = Infinity;
    this.high = -Infinity;
    this.widest = 1;
    this.committed = 0;
    this.truncated = false;
    this.ranked = false; // whether ranks are other than scores
    this.size = 0;
    this.growing = true; // until its search has ended
  }

  /** Takes `guidance.round` of a chunk (docs/api.md). */
  add(round) {
    if (round.truncated) {
      this.truncated = true;
      return;
    }
    const previous = new Map(this.rounds.at(-1)?.nodes.map((node) => [node.id, node]));
    const index = this.rounds.length;
    const nodes = round.candidates.map((candidate) => makeNode(candidate, previous, index));
    for (const node of nodes) {
      this.low = Math.min(this.low, node.score);
      this.high = Math.max(this.high, node.score);
      this.ranked ||= node.rank !== node.score;
    }
    // Children stand in their parents' order, so that no two lines cross; among siblings the best is on top.
    nodes.sort((one, other) => slotOf(one.parent) - slotOf(other.parent) || other.rank - one.rank);
    nodes.forEach((node, slot) => {
      node.slot = slot;
      node.y = slot - (nodes.length - 1) / 2;
    });
    const scores = nodes.map((node) => node.score);
    this.rounds.push({ nodes, low: Math.min(...scores), high: Math.max(...scores) });
    this.widest = Math.max(this.widest, nodes.length);
    this.size += nodes.length;
    this.committed = round.committed;
  }

  /** The candidate of the last round that ranks highest in the beam, whose text the answer will be by now. */
  get best() {
    const beam = (this.rounds.at(-1)?.nodes ?? []).filter((node) => node.inBeam);
    return beam.reduce((best, node) => (best === null || node.rank > best.rank ? node : best), null);
  }

  /** The candidate that an answer is of. A stop string may have cut the answer, and a tree that is too large ends early. */
  leafOf(answer) {
    const beam = (this.rounds.at(-1)?.nodes ?? []).filter((node) => node.inBeam);
    const fits = [(text) => text === answer, (text) => text.startsWith(answer), (text) => answer.startsWith(text)];
    return fits.map((fit) => beam.find((node) => fit(node.text))).find((node) => node !== undefined) ?? this.best;
  }

  node(round, slot) {
    return this.rounds[round]?.nodes[slot] ?? null;
  }
}

function slotOf(node) {
  return node === null ? 0 : node.slot;
}

function makeNode(candidate, previous, round) {
  const parent = previous.get(candidate.parent) ?? null;
  const node = {
    ...{ round, id: candidate.id, parent, children: [], slot: 0, y: 0 },
    ...{ score: candidate.score, scores: candidate.scores, rank: candidate.rank ?? candidate.score },
    ...{ fate: candidate.fate, finish: candidate.finish_reason, added: candidate.text },
    text: (parent === null ? "" : head(parent.text, candidate.offset)) + candidate.text,
    inBeam: candidate.fate === "kept" || candidate.fate === "finished",
    carried: candidate.text === "" && candidate.finish_reason !== null && parent !== null,
    label: null,
  };
  parent?.children.push(node);
  return node;
}

/** A candidate with all its ancestors, the first round first. */
export function pathTo(node) {
  const nodes = [];
  for (let step = node; step !== null; step = step.parent) nodes.unshift(step);
  return nodes;
}
