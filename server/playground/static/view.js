// The tree on the page: drawing when something changed, the pointer, the keyboard, and what a screen reader hears.
import { announce, byId, nats, perFrame } from "./dom.js";
import { describe, showLineage } from "./candidate.js";
import { colours, onThemeChange } from "./palette.js";
import { paint } from "./paint.js";
import { paintPlot } from "./plot.js";
import { Tree, pathTo } from "./tree.js";
import { Viewport } from "./viewport.js";

const ZOOM = 1.25;
const CLICK = 4; // px that a pointer may move and still click

const LONG = 100; // rounds, from which on the lineage is written less often: each time takes as long as it is
const PAUSE_MS = 250;

/** Shows one tree. The lineage that is followed is the best candidate's, until a person chooses another. */
export class TreeView {
  #host = byId("tree");
  #canvas = byId("tree-canvas");
  #plot = byId("plot-canvas");
  #view = new Viewport();
  #tree = new Tree(0);
  #marks = { path: new Set(), focus: null, hover: null, byRound: false };
  #chosen = null; // the candidate that a person follows
  #followedAt = 0;
  #answer = null; // the candidate that the answer is, once it is known
  #pointers = new Map();
  #moved = 0;

  constructor() {
    this.redraw = perFrame(() => this.#draw());
    new ResizeObserver(() => this.#resize()).observe(this.#host);
    onThemeChange(() => this.redraw());
    this.#listen();
  }

  /** Shows another tree from its beginning. */
  show(tree, answer = null) {
    this.#tree = tree;
    this.#chosen = null;
    this.#answer = answer;
    Object.assign(this.#marks, { focus: null, hover: null });
    byId("tip").hidden = true;
    this.#view.fit(tree);
    this.changed(tree);
  }

  /** Draws what came to the tree, if it is the one that is shown. `answer` is the answer's candidate at the end. */
  changed(tree, answer = null) {
    if (tree !== this.#tree) return;
    this.#answer = answer ?? this.#answer;
    if (!tree.growing) tree.expected = tree.rounds.length;
    if (this.#view.following) this.#view.fit(tree);
    byId("tree-empty").hidden = tree.size > 0;
    byId("tree-truncated").hidden = !tree.truncated;
    byId("tree-ranked").hidden = !tree.ranked;
    const now = performance.now();
    const waits = tree.growing && tree.rounds.length > LONG && now - this.#followedAt < PAUSE_MS;
    if (waits) return this.redraw();
    this.#followedAt = now;
    this.#follow();
  }

  colourBy(what) {
    this.#marks.byRound = what === "round";
    this.redraw();
  }

  zoom(factor) {
    if (factor === 0) this.#view.fit(this.#tree);
    else this.#view.zoom(factor);
    this.redraw();
  }

  #follow() {
    const node = this.#chosen ?? this.#answer ?? this.#tree.best;
    this.#marks.path = new Set(node === null ? [] : pathTo(node));
    showLineage(this.#tree, node, this.#chosen !== null, (step) => this.#choose(step));
    this.redraw();
  }

  /** Follows a candidate's lineage; null goes back to the answer's. */
  #choose(node) {
    this.#chosen = node;
    this.#marks.focus = node ?? this.#marks.focus;
    if (node !== null) this.#view.reveal(node);
    announce(node === null ? "Following the best candidate." : `Following: ${node.text}`);
    this.#follow();
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    const width = this.#host.clientWidth;
    this.#view.resize(width, this.#host.clientHeight);
    for (const canvas of [this.#canvas, this.#plot]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(canvas.clientHeight * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    if (this.#view.following) this.#view.fit(this.#tree);
    this.#draw();
  }

  #draw() {
    paint(this.#canvas.getContext("2d"), this.#tree, this.#view, this.#marks);
    const height = this.#plot.clientHeight;
    paintPlot(this.#plot.getContext("2d"), this.#tree, this.#view, height, this.#marks.path, this.#marks.byRound);
    this.#host.dataset.nodes = this.#tree.size;
    this.#host.dataset.rounds = this.#tree.rounds.length;
    this.#plot.setAttribute("aria-label", this.#plotInWords());
    this.#showLegend();
  }

  #plotInWords() {
    const rounds = this.#tree.rounds;
    if (rounds.length === 0) return "Score over chunks: nothing yet";
    return `Score over ${rounds.length} chunks: the best candidate's goes from ${nats(rounds[0].high)} to ${nats(rounds.at(-1).high)} nats`;
  }

  #showLegend() {
    const { low, high, size } = this.#tree;
    const known = size > 0 && !this.#marks.byRound;
    byId("legend-low").textContent = known ? nats(low) : "low";
    byId("legend-high").textContent = known ? nats(high) : "high";
    const scale = byId("legend-scale");
    const steps = colours().scale;
    if (scale.dataset.first === steps[0]) return;
    scale.dataset.first = steps[0];
    scale.style.background = `linear-gradient(to right, ${steps.join(", ")})`;
  }

  #listen() {
    const host = this.#host;
    host.addEventListener("wheel", (event) => this.#onWheel(event), { passive: false });
    host.addEventListener("pointerdown", (event) => this.#onDown(event));
    host.addEventListener("pointermove", (event) => this.#onMove(event));
    host.addEventListener("pointerup", (event) => this.#onUp(event));
    host.addEventListener("pointercancel", (event) => this.#pointers.delete(event.pointerId));
    host.addEventListener("pointerleave", () => this.#hover(null));
    host.addEventListener("keydown", (event) => this.#onKey(event));
  }

  #onWheel(event) {
    if (this.#tree.size === 0 || (!event.ctrlKey && document.activeElement !== this.#host)) return; // the page scrolls
    event.preventDefault();
    this.#view.zoom(Math.exp(-event.deltaY * 0.002), event.offsetX, event.offsetY);
    this.redraw();
  }

  #onDown(event) {
    this.#moved = 0;
    this.#pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    this.#host.setPointerCapture(event.pointerId);
  }

  #onMove(event) {
    const last = this.#pointers.get(event.pointerId);
    if (last === undefined) {
      this.#hover(this.#view.hit(this.#tree, event.offsetX, event.offsetY), event);
      return;
    }
    const [dx, dy] = [event.offsetX - last.x, event.offsetY - last.y];
    this.#moved += Math.abs(dx) + Math.abs(dy);
    const other = [...this.#pointers.entries()].find(([id]) => id !== event.pointerId)?.[1];
    if (other !== undefined) {
      const spread = (point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
      const factor = spread({ x: event.offsetX, y: event.offsetY }) / spread(last);
      this.#view.zoom(factor, other.x, other.y);
    } else if (this.#moved > CLICK) {
      this.#view.pan(dx, dy);
    }
    Object.assign(last, { x: event.offsetX, y: event.offsetY });
    this.redraw();
  }

  #onUp(event) {
    if (this.#pointers.delete(event.pointerId) && this.#moved <= CLICK) {
      this.#choose(this.#view.hit(this.#tree, event.offsetX, event.offsetY));
    }
  }

  #hover(node, event = null) {
    const tip = byId("tip");
    tip.hidden = node === null;
    this.#host.classList.toggle("over", node !== null);
    if (node !== null) {
      if (node !== this.#marks.hover) tip.replaceChildren(...describe(node));
      const left = event.offsetX + 16 + tip.offsetWidth > this.#view.width ? event.offsetX - tip.offsetWidth - 12 : event.offsetX + 16;
      const top = Math.min(event.offsetY + 12, Math.max(0, this.#view.height - tip.offsetHeight - 4));
      tip.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
    }
    if (node === this.#marks.hover) return;
    this.#marks.hover = node;
    this.redraw();
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = MOVES[event.key];
    const zoom = { "+": ZOOM, "=": ZOOM, "-": 1 / ZOOM, "0": 0 }[event.key];
    if (move !== undefined && this.#tree.size > 0) this.#focus(move(this.#tree, this.#marks.focus ?? this.#start()));
    else if (zoom !== undefined) this.zoom(zoom);
    else if (event.key === "Enter" || event.key === " ") this.#choose(this.#marks.focus);
    else if (event.key === "Escape") this.#choose(null);
    else return;
    event.preventDefault();
  }

  #start() {
    return [...this.#marks.path].at(-1) ?? this.#tree.node(0, 0);
  }

  #focus(node) {
    if (node === null) return;
    this.#marks.focus = node;
    this.#view.reveal(node);
    const order = `${node.slot + 1} of ${this.#tree.rounds[node.round].nodes.length}`;
    const fate = node.fate === "finished" ? "finished" : node.inBeam ? "kept" : node.fate;
    announce(`Chunk ${node.round + 1}, candidate ${order}, ${fate}, score ${nats(node.score)}: ${node.added || "no new text"}`);
    this.redraw();
  }
}

/** What the arrow keys go to: parent, best child, neighbours in the round, and the ends. */
const MOVES = {
  ArrowLeft: (_, node) => node.parent ?? node,
  ArrowRight: (_, node) => node.children.reduce((best, child) => (best && best.rank >= child.rank ? best : child), null) ?? node,
  ArrowUp: (tree, node) => tree.node(node.round, node.slot - 1) ?? node,
  ArrowDown: (tree, node) => tree.node(node.round, node.slot + 1) ?? node,
  Home: (tree) => tree.rounds[0].nodes.find((node) => node.inBeam) ?? tree.node(0, 0),
  End: (tree) => tree.best ?? tree.node(tree.rounds.length - 1, 0),
};
