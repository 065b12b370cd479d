// Colours of scores. Both scales rise in lightness against their background and keep their order for colour-blind eyes.

const DARK = ["#5b4a9c", "#4a6fb5", "#2f97ad", "#35b58a", "#7fcf57", "#d3e03f", "#fff27a"]; // viridis, its dark end lifted
const LIGHT = ["#b9b46a", "#8fb06a", "#4fa57f", "#2a8c93", "#2b6ca3", "#31479b", "#2c1a6b"]; // dark is high, on white
const STEPS = 24;

const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = null;

/** The colours of the moment: the page's own, read from its style sheet, and the scale of scores. */
export function colours() {
  if (theme === null) {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => style.getPropertyValue(`--${name}`).trim();
    theme = {
      scale: spread(dark.matches ? DARK : LIGHT),
      text: named("text"),
      muted: named("muted"),
      faint: named("faint"),
      line: named("line"),
      surface: named("surface"),
      accent: named("accent"),
    };
  }
  return theme;
}

/** Calls `changed` when the visitor's system turns dark or light. */
export function onThemeChange(changed) {
  dark.addEventListener("change", () => {
    theme = null;
    changed();
  });
}

/** The step of the scale for a score between `low` and `high`. */
export function stepOf(score, low, high) {
  if (!(high > low)) return STEPS >> 1;
  return Math.max(0, Math.min(STEPS - 1, Math.floor(((score - low) / (high - low)) * STEPS)));
}

/** The scale in `STEPS` colours, linear between the given ones. */
function spread(stops) {
  const channels = stops.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: STEPS }, (_, step) => {
    const position = (step / (STEPS - 1)) * (stops.length - 1);
    const index = Math.min(stops.length - 2, Math.floor(position));
    const mixed = channels[index].map((low, i) => low + (channels[index + 1][i] - low) * (position - index));
    return `rgb(${mixed.map(Math.round).join(" ")})`;
  });
}
