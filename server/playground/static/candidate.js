// One candidate in words: in the tip beside the pointer, and its lineage below the tree.
import { byId, h, nats } from "./dom.js";
import { head, pathTo, tail } from "./tree.js";

const FATES = {
  kept: "kept in the beam",
  pruned: "pruned",
  merged: "merged: the same text as another candidate",
  finished: "finished answer",
};

/** What is known of a candidate, as elements. */
export function describe(node) {
  const scores = Object.entries(node.scores ?? {}).map(([name, value]) => row(name, nats(value)));
  return [
    h("p", { class: "tip-text" }, node.parent ? h("span", { class: "before" }, last(node.parent.text)) : "", h("mark", {}, node.added)),
    h(
      "dl",
      {},
      row("score", nats(node.score)),
      ...scores,
      node.rank === node.score ? null : row("rank", nats(node.rank)),
      row("fate", FATES[node.fate] ?? node.fate),
      node.finish ? row("ended by", node.finish) : null,
    ),
  ];
}

function row(term, value) {
  return h("div", {}, h("dt", {}, term), h("dd", {}, value));
}

function last(text) {
  return text.length > 90 ? `…${text.slice(-90)}` : text;
}

/** Shows a candidate's text chunk by chunk, each with the score so far. `choose` follows the lineage up to a chunk. */
export function showLineage(tree, node, chosen, choose) {
  byId("lineage-title").textContent = titleOf(tree, node, chosen);
  byId("lineage-back").hidden = !chosen;
  byId("lineage-back").onclick = () => choose(null);
  const steps = node === null ? [] : pathTo(node).filter((step) => !step.carried);
  const list = byId("lineage");
  const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...steps.map((step) => chunk(tree, step, choose)));
  list.dataset.text = node?.text ?? "";
  const buttons = list.querySelectorAll("button");
  if (focused >= 0 && buttons.length > 0) buttons[Math.min(focused, buttons.length - 1)].focus({ preventScroll: true });
}

function titleOf(tree, node, chosen) {
  if (node === null) return "";
  if (!chosen) return "The best candidate, chunk by chunk";
  return node.inBeam ? "The candidate that you follow, kept" : `The candidate that you follow, ${node.fate} after chunk ${node.round + 1}`;
}

/** A chunk, with the part marked that every kept candidate shares and that has been sent. */
function chunk(tree, step, choose) {
  const before = step.parent === null ? 0 : Array.from(step.parent.text).length;
  const shared = Math.max(0, tree.committed - before);
  const isSent = tree.best !== null && head(tree.best.text, tree.committed).startsWith(head(step.text, tree.committed));
  const sent = isSent ? head(step.added, shared) : "";
  const gained = step.score - (step.parent?.score ?? 0);
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: "chunk", onclick: () => choose(step), title: `Chunk ${step.round + 1}: follow it` },
      h("span", { class: "chunk-text" }, h("span", { class: "sent" }, sent), isSent ? tail(step.added, shared) : step.added),
      h("span", { class: gained < 0 ? "chunk-score down" : "chunk-score" }, `${gained < 0 ? "" : "+"}${nats(gained)}`),
    ),
  );
}
