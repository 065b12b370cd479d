// The scores over the chunks, under the tree and in its columns: every candidate, the beam's band, the path's line.
import { nats } from "./dom.js";
import { colours, stepOf } from "./palette.js";

const TOP = 16;
const BOTTOM = 19;

/** Draws the plot. `path` are the nodes of the followed lineage. */
export function paintPlot(context, tree, view, height, path, byRound) {
  const theme = colours();
  context.clearRect(0, 0, view.width, height);
  const scale = scaleOf(tree, height);
  drawAxis(context, view, scale, theme, tree);
  if (tree.rounds.length === 0) return;
  drawDots(context, tree, view, scale, theme, byRound);
  drawPath(context, view, scale, theme, path);
}

/** From a score to a height, with zero in sight. */
function scaleOf(tree, height) {
  const low = Math.min(0, tree.low);
  const high = Math.max(0, tree.high);
  const span = high > low ? high - low : 1;
  return { low, high, y: (score) => TOP + (1 - (score - low) / span) * (height - TOP - BOTTOM) };
}

function drawAxis(context, view, scale, theme, tree) {
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "left";
  context.lineWidth = 1;
  const values = tree.rounds.length ? [scale.high, 0, scale.low] : [0];
  for (const [index, value] of values.entries()) {
    if (index !== 1 && values.length > 1 && Math.abs(scale.y(value) - scale.y(0)) < 16) continue;
    const y = Math.round(scale.y(value)) + 0.5;
    context.strokeStyle = value === 0 ? theme.line : theme.faint;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(view.width, y);
    context.stroke();
    context.fillStyle = theme.muted;
    context.textBaseline = value > 0 ? "bottom" : "top";
    context.fillText(value === 0 ? "0 nats" : nats(value), 4, y + (value > 0 ? -2 : 3));
  }
}

function drawDots(context, tree, view, scale, theme, byRound) {
  const groups = new Map();
  const radius = Math.max(1, Math.min(3, view.column * 0.2));
  for (const round of tree.rounds) {
    const x = view.xOf(round.nodes[0]?.round ?? 0);
    if (x < -5 || x > view.width + 5) continue;
    const [low, high] = byRound ? [round.low, round.high] : [tree.low, tree.high];
    for (const node of round.nodes) {
      const key = stepOf(node.score, low, high) * 2 + (node.inBeam ? 1 : 0);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(x, scale.y(node.score));
    }
  }
  for (const [key, points] of groups) {
    const r = key % 2 ? radius + 0.8 : radius;
    context.fillStyle = theme.scale[key >> 1];
    context.globalAlpha = key % 2 ? 1 : 0.5;
    context.beginPath();
    for (let at = 0; at < points.length; at += 2) context.rect(points[at] - r, points[at + 1] - r, r * 2, r * 2);
    context.fill();
  }
  context.globalAlpha = 1;
}

function drawPath(context, view, scale, theme, path) {
  context.strokeStyle = theme.accent;
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.beginPath();
  context.moveTo(view.xOf(-1), scale.y(0));
  for (const node of path) context.lineTo(view.xOf(node.round), scale.y(node.score));
  if (path.size) context.stroke();
}
