// Draws a tree on a canvas. Lines and nodes are gathered by colour, so that thousands cost a few dozen strokes.
import { colours, stepOf } from "./palette.js";

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const PLAIN = `12px ${FONT}`;
const BOLD = `600 12px ${FONT}`;
const SMALL = `11px ${FONT}`;
const LINE = 14.5; // px

/** Draws everything. `marks`: {path: Set of nodes that are followed, focus, hover: nodes or null, byRound}. */
export function paint(context, tree, view, marks) {
  const theme = colours();
  context.clearRect(0, 0, view.width, view.height);
  context.lineCap = "round";
  drawColumns(context, tree, view, theme);
  const visible = visibleRounds(tree, view);
  drawLines(context, visible, view, theme, marks);
  drawNodes(context, tree, visible, view, theme, marks);
  if (view.labelWidth > 0) drawLabels(context, visible, view, theme, marks);
  drawRoot(context, view, theme);
}

function visibleRounds(tree, view) {
  return tree.rounds.filter((_, index) => view.xOf(index) > -view.column && view.xOf(index - 1) < view.width + 10);
}

/** Chunk numbers along the top, and a hair line for each. */
function drawColumns(context, tree, view, theme) {
  const every = [1, 2, 5, 10, 20, 50, 100].find((step) => step * view.column >= 44) ?? 200;
  context.fillStyle = theme.muted;
  context.font = SMALL;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.strokeStyle = theme.faint;
  context.lineWidth = 1;
  context.beginPath();
  for (let index = 0; index < Math.max(tree.rounds.length, tree.expected); index += 1) {
    const x = Math.round(view.xOf(index)) + 0.5;
    if (index % every !== 0 || x < 0 || x > view.width) continue;
    context.fillText(String(index + 1), x, 13);
    context.moveTo(x, 24);
    context.lineTo(x, view.height);
  }
  context.stroke();
}

/** Lines from parents to children: first the pruned, then the beam, then what is followed. */
function drawLines(context, rounds, view, theme, marks) {
  const [pruned, beam, path] = [new Path2D(), new Path2D(), new Path2D()];
  for (const { nodes } of rounds) {
    for (const node of nodes) {
      const followed = marks.path.has(node);
      addLine(followed ? path : node.inBeam ? beam : pruned, node, view);
    }
  }
  const dense = view.row < 7;
  stroke(context, pruned, theme.line, dense ? 0.5 : 1, dense ? 0.45 : 0.9);
  stroke(context, beam, theme.muted, dense ? 1 : 1.6, 0.9);
  stroke(context, path, theme.accent, dense ? 2 : 3, 1);
}

function stroke(context, path, colour, width, alpha) {
  context.globalAlpha = alpha;
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
  context.globalAlpha = 1;
}

function addLine(path, node, view) {
  const parent = node.parent;
  const texts = view.labelWidth > 0;
  const y = view.yOf(node);
  const x = view.xOf(node.round);
  const startX = parent === null ? view.xOf(-1) + 6 : view.xOf(parent.round) + (texts ? labelOf(parent, view).width + 14 : 4);
  const startY = parent === null ? view.y : view.yOf(parent);
  path.moveTo(startX, startY);
  if (view.column < 30) {
    path.lineTo(x, y);
  } else {
    const middle = (startX + x) / 2;
    path.bezierCurveTo(middle, startY, middle, y, x - 5, y);
  }
}

/** Nodes, by colour of score. Pruned ones are small and pale. */
function drawNodes(context, tree, rounds, view, theme, marks) {
  const size = Math.max(1.2, Math.min(5.5, view.row * 0.36, view.column * 0.3));
  const groups = new Map();
  for (const round of rounds) {
    const [low, high] = marks.byRound ? [round.low, round.high] : [tree.low, tree.high];
    for (const node of round.nodes) {
      const strong = node.inBeam || marks.path.has(node);
      const key = stepOf(node.score, low, high) * 2 + (strong ? 1 : 0);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(node);
    }
  }
  for (const strong of [0, 1]) {
    for (const [key, nodes] of groups) {
      if (key % 2 !== strong) continue;
      context.fillStyle = theme.scale[key >> 1];
      context.globalAlpha = strong ? 1 : 0.62;
      fillDots(context, nodes, view, strong ? size : size * 0.7);
    }
  }
  context.globalAlpha = 1;
  for (const [node, colour] of [[marks.hover, theme.text], [marks.focus, theme.accent]]) ring(context, node, view, size + 3.5, colour);
  for (const { nodes } of rounds) for (const node of nodes) if (node.fate === "finished" && !node.carried) bar(context, node, view, size, theme);
}

function fillDots(context, nodes, view, radius) {
  context.beginPath();
  for (const node of nodes) {
    const x = view.xOf(node.round);
    const y = view.yOf(node);
    const r = node.carried ? radius * 0.6 : radius;
    if (r < 2) {
      context.rect(x - r, y - r, r * 2, r * 2);
    } else {
      context.moveTo(x + r, y);
      context.arc(x, y, r, 0, Math.PI * 2);
    }
  }
  context.fill();
}

function ring(context, node, view, radius, colour) {
  if (node === null) return;
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.beginPath();
  context.arc(view.xOf(node.round), view.yOf(node), radius, 0, Math.PI * 2);
  context.stroke();
}

/** A finished answer ends in an upright bar. */
function bar(context, node, view, size, theme) {
  const x = view.xOf(node.round) + (view.labelWidth > 0 ? labelOf(node, view).width + 13 : size + 3);
  context.fillStyle = theme.text;
  context.fillRect(x, view.yOf(node) - 6, 2, 12);
}

function drawLabels(context, rounds, view, theme, marks) {
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (const { nodes } of rounds) {
    for (const node of nodes) {
      const y = view.yOf(node);
      if (y < 20 || y > view.height + 6 || node.carried) continue;
      const followed = marks.path.has(node);
      context.font = node.inBeam || followed ? BOLD : PLAIN;
      context.fillStyle = followed ? theme.accent : node.inBeam ? theme.text : theme.muted;
      const lines = labelOf(node, view).lines;
      lines.forEach((line, index) => context.fillText(line, view.xOf(node.round) + 9, y + 0.5 + (index - (lines.length - 1) / 2) * LINE));
    }
  }
}

const ruler = document.createElement("canvas").getContext("2d");

/** The new text of a candidate as far as it fits: {lines, width, room, most}. It is measured once for a size. */
function labelOf(node, view) {
  const [room, most] = [view.labelWidth, view.labelLines];
  if (node.label?.room === room && node.label.most === most) return node.label;
  ruler.font = BOLD; // a followed candidate turns bold
  const added = node.carried ? "" : node.added.replaceAll(/\s+/g, " ").trim() || "␣";
  const text = node.fate === "merged" ? `= ${added}` : added;
  const lines = wrap(text, room, most);
  const width = Math.max(...lines.map((line) => ruler.measureText(line).width));
  node.label = { lines, width, room, most };
  return node.label;
}

/** Breaks a text between words into at most so many lines; what does not fit is cut. */
function wrap(text, room, most) {
  const fits = (part) => ruler.measureText(part).width <= room;
  if (fits(text)) return [text];
  const words = most > 1 ? text.split(" ") : [];
  let line = "";
  while (words.length && fits(line === "" ? words[0] : `${line} ${words[0]}`)) line = line === "" ? words.shift() : `${line} ${words.shift()}`;
  if (line !== "") return [line, ...wrap(words.join(" "), room, most - 1)];
  let length = Math.floor((text.length * room) / ruler.measureText(text).width);
  while (length > 1 && !fits(`${text.slice(0, length)}…`)) length -= 1;
  return [`${text.slice(0, length)}…`];
}

function drawRoot(context, view, theme) {
  context.fillStyle = theme.muted;
  context.beginPath();
  context.roundRect(view.xOf(-1) - 5, view.y - 5, 10, 10, 3);
  context.fill();
}
