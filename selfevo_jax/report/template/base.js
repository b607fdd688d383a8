// Building blocks. Every string from a run reaches the page as a text node: nothing is ever parsed
// as HTML, and characters that hide or reorder text are shown by name.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g;

function visible(value) {
  const text = String(value), parts = document.createDocumentFragment();
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    parts.append(text.slice(from, match.index));
    const code = "U+" + match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const mark = document.createElement("span");
    mark.className = "control";
    mark.textContent = code;
    mark.title = "invisible character " + code;
    parts.append(mark);
    from = match.index + match[0].length;
  }
  parts.append(text.slice(from));
  return parts;
}

// make("p", {class: "note"}, "text", node): strings become visible text nodes, "on…" are listeners.
function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    element.append(child instanceof Node ? child : visible(child));
  }
  return element;
}

const MINUS = "\u2212";
const whole = (value) => Math.round(value).toLocaleString("en");
const percent = (share, digits = 1) => (100 * share).toFixed(digits).replace("-", MINUS) + " %";
const points = (share) => (share < 0 ? MINUS : "+") + Math.abs(100 * share).toFixed(1);
const brief = (value) => {
  const size = Math.abs(value);
  const text = size >= 1e6 ? (value / 1e6).toFixed(1) + " M" : size >= 1e4 ? (value / 1e3).toFixed(0) + " k"
    : size >= 100 || Number.isInteger(value) ? whole(value) : String(Number(value.toPrecision(3)));
  return text.replace("-", MINUS);
};
const duration = (seconds) => seconds < 60 ? seconds.toFixed(1) + " s"
  : seconds < 3600 ? `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`
  : `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
const pValue = (p) => p < 0.001 ? "p < 0.001" : "p = " + p.toFixed(3);
const operations = (value) => {  // of floating point, with the prefixes of the SI
  const power = Math.min(6, Math.max(0, Math.floor(Math.log10(value || 1) / 3)));
  return `${(value / 1000 ** power).toPrecision(3)} ${" kMGTPE"[power].trim()}FLOP`;
};
const roundName = (number) => number === 0 ? "before training" : "round " + number;

function table(heads, rows, caption) {
  const cell = (value, i, kind) =>
    make(kind, {class: heads[i].number ? "number" : null, scope: kind === "th" ? "col" : null}, value);
  return make("div", {class: "scroll", role: "region", "aria-label": caption, tabindex: 0},
    make("table", {},
      make("caption", {class: "hidden"}, caption),
      make("thead", {}, make("tr", {}, heads.map((head, i) => cell(head.name, i, "th")))),
      make("tbody", {}, rows.map((row) => make("tr", {}, row.map((value, i) => cell(value, i, "td")))))));
}

// Words of two texts, aligned by their longest common subsequence. Returns [kind, words] runs with
// kind "same", "old" or "new"; texts too long to align are compared from both ends only.
function wordDifference(before, after) {
  const one = before.match(/\s+|[^\s]+/g) || [], two = after.match(/\s+|[^\s]+/g) || [];
  let head = 0, tail = 0;
  while (head < one.length && head < two.length && one[head] === two[head]) head++;
  while (tail < one.length - head && tail < two.length - head
    && one[one.length - 1 - tail] === two[two.length - 1 - tail]) tail++;
  const runs = [["same", one.slice(0, head)]];
  runs.push(...middleDifference(one.slice(head, one.length - tail), two.slice(head, two.length - tail)));
  runs.push(["same", one.slice(one.length - tail)]);
  return runs.filter((run) => run[1].length);
}

function middleDifference(one, two) {
  if (one.length * two.length > 1e6) return [["old", one], ["new", two]];
  const width = two.length + 1, best = new Uint16Array((one.length + 1) * width);
  for (let i = one.length - 1; i >= 0; i--)
    for (let j = two.length - 1; j >= 0; j--)
      best[i * width + j] = one[i] === two[j] ? best[(i + 1) * width + j + 1] + 1
        : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
  const runs = [];
  const add = (kind, word) => {
    if (runs.length && runs[runs.length - 1][0] === kind) runs[runs.length - 1][1].push(word);
    else runs.push([kind, [word]]);
  };
  let i = 0, j = 0;
  while (i < one.length || j < two.length) {
    if (i < one.length && j < two.length && one[i] === two[j]) { add("same", one[i++]); j++; }
    else if (j >= two.length || (i < one.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) add("old", one[i++]);
    else add("new", two[j++]);
  }
  return runs;
}

// One side of a comparison: the words of that side, those that differ marked with `tag`.
function side(runs, kind, tag) {
  const said = make("div", {class: "said", dir: "auto"});
  for (const [of, words] of runs) {
    if (of === "same") said.append(visible(words.join("")));
    else if (of === kind) said.append(make(tag, {}, words.join("")));
  }
  if (!said.childNodes.length) said.append(make("em", {class: "hint"}, "(empty)"));
  return said;
}
