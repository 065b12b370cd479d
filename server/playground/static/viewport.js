// Where rounds and slots are on the screen. Zooming moves nodes apart; their text keeps its size.

const LEFT = 18; // px to the prompt
const FIRST = 58; // px from there to the first column, at most
const TOP = 30; // px for the numbers of the chunks
const BOTTOM = 14;
const COLUMN = { least: 7, most: 420, widestFit: 240 };
const ROW = { least: 2, most: 90, tallestFit: 52 };

const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

export class Viewport {
  width = 100;
  height = 100;
  column = 100; // px between rounds
  row = 20; // px between slots
  x = LEFT; // of the prompt
  y = 50; // of the middle slot
  following = true; // until a person zooms or pans

  resize(width, height) {
    this.width = width;
    this.height = height;
  }

  /** Shows all of the tree, with room for the rounds to come. */
  fit(tree) {
    const rounds = Math.max(tree.rounds.length, tree.expected, 1);
    this.column = clamp((this.width - LEFT - FIRST) / rounds, COLUMN.least, COLUMN.widestFit);
    this.row = clamp((this.height - TOP - BOTTOM) / tree.widest, ROW.least, ROW.tallestFit);
    this.x = Math.min(LEFT, this.width - FIRST - this.column * tree.rounds.length); // the end, if not all fits
    this.y = TOP + (this.height - TOP - BOTTOM) / 2;
    this.following = true;
  }

  zoom(factor, atX = this.width / 2, atY = this.height / 2) {
    const column = clamp(this.column * factor, COLUMN.least, COLUMN.most);
    const row = clamp(this.row * factor, ROW.least, ROW.most);
    this.x = atX - ((atX - this.x) * column) / this.column;
    this.y = atY - ((atY - this.y) * row) / this.row;
    this.column = column;
    this.row = row;
    this.following = false;
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.following = false;
  }

  /** Moves so that a node is in sight. */
  reveal(node) {
    const [x, y] = [this.xOf(node.round), this.yOf(node)];
    const dx = clamp(x, 40, this.width - Math.min(160, this.width / 3)) - x;
    const dy = clamp(y, TOP + 12, this.height - BOTTOM - 12) - y;
    if (dx !== 0 || dy !== 0) this.pan(dx, dy);
  }

  /** The horizontal position of a round; −1 is the prompt. */
  xOf(round) {
    return round < 0 ? this.x : this.x + Math.min(FIRST, this.column * 0.6) + round * this.column;
  }

  yOf(node) {
    return this.y + node.y * this.row;
  }

  /** Whether texts have room beside the nodes, and how wide they may be. */
  get labelWidth() {
    return this.column >= 82 && this.row >= 12.5 ? this.column - Math.max(36, this.column * 0.2) : 0;
  }

  /** How many lines a text may have. */
  get labelLines() {
    return this.row >= 31 ? 2 : 1;
  }

  /** The node under a position: the nearest slot of the column whose node or text is there. Null if there is none. */
  hit(tree, x, y) {
    const before = this.labelWidth > 0 ? 9 : this.column / 2;
    const index = Math.floor((x - this.xOf(0) + before) / this.column);
    const nodes = tree.rounds[index]?.nodes;
    if (nodes === undefined) return null;
    const slot = Math.round((y - this.y) / this.row + (nodes.length - 1) / 2);
    const node = nodes[slot] ?? null;
    return node !== null && Math.abs(this.yOf(node) - y) <= Math.max(8, this.row / 2) ? node : null;
  }
}
