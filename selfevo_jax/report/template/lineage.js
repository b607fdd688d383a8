// What each policy came from, models and data, as a drawing with its figures in a table, and how the
// judges behaved.
function lineage() {
  const {policies, data} = DATA.lineage;
  if (policies.length < 2) return;
  const heads = ["Policy", "Started from", "Model", "Trained in", "Trained on", "Hash"].map((name) => ({name}));
  heads.splice(5, 0, {name: "Examples", number: true});
  const rows = policies.map((n) => [n.name, n.parent || "", n.model || "", n.stage || "", n.inputs.join(", "),
    n.counts.examples ? whole(n.counts.examples) : "", n.hash]);
  section("lineage", "Lineage", make("p", {class: "note"}, "Boxes are policies, rounded ones the data that they were trained on. A full line goes from data to what " +
    "was trained on it, a dotted one to data from the policies whose replies or verdicts it comes from, a faint one from the policy that a training began as."),
  make("div", {class: "scroll", role: "region", "aria-label": "Drawing of the lineage", tabindex: 0}, family(policies, data)),
  table(heads, rows, "Policies and what they came from"),
  data.length ? table([{name: "Data"}, {name: "Records", number: true}, {name: "Made by"}, {name: "Trained"}], data.map((d) =>
    [d.name, `${whole(d.records)} ${d.kind}`, d.by.join(", "), usersOf(d, policies).map((n) => n.name).join(", ")]), "Data that policies were trained on") : null);
}

const usersOf = (data, policies) => policies.filter((n) => n.inputs.includes(data.name));
const BOX = {width: 236, height: 40};

// Policies and data in columns by what is behind them, so that every line goes from left to right.
function family(policies, data) {
  const wide = 276, tall = 54, columns = new Map(), at = new Map();
  const put = (name, column) => {
    const row = columns.get(column) || 0;
    columns.set(column, row + 1);
    at.set(name, [10 + wide * column, 10 + tall * row]);
  };
  for (const node of policies) put("policy " + node.name, node.column);
  for (const node of data) put("data " + node.name, node.column);
  const size = [10 + wide * Math.max(...columns.keys()) + BOX.width, 10 + tall * Math.max(...columns.values())];
  const shown = (d) => `${whole(d.records)} ${d.kind} of ${d.name}` + (d.by.length ? ` by ${d.by.join(", ")}` : "");
  const spoken = policies.map((n) => (n.parent ? `${n.name} from ${n.parent}` : n.name) +
    data.filter((d) => n.inputs.includes(d.name)).map((d) => ` and ${shown(d)}`).join("")).join("; ");
  const svg = draw("svg", {viewBox: `0 0 ${size[0]} ${size[1]}`, role: "img", "aria-label": `Lineage: ${spoken}`});
  svg.style.width = size[0] + "px";
  const join = (from, to, kind) => {
    if (at.has(from) && at.has(to)) svg.append(link(at.get(from), at.get(to), kind));
  };
  for (const node of policies) join("policy " + node.parent, "policy " + node.name, "line faint");
  for (const node of data) {
    for (const name of node.by) join("policy " + name, "data " + node.name, "line asked");
    for (const user of usersOf(node, policies)) join("data " + node.name, "policy " + user.name, "line");
  }
  for (const n of policies) svg.append(...boxOf(at.get("policy " + n.name), 3, n.name, n.counts.examples ? `${whole(n.counts.examples)} examples` : n.model));
  for (const d of data) svg.append(...boxOf(at.get("data " + d.name), 18, d.name.replace("round_", "").replace("/", ": "), `${whole(d.records)} ${d.kind}`));
  return svg;
}

const brimmed = (text) => String(text).length > 28 ? `\u2026${String(text).slice(-27)}` : clip(text);  // the end tells more

function boxOf([x, y], rx, name, below) {
  return [draw("rect", {class: "node", x, y, rx, ...BOX}), draw("text", {class: "value", x: x + 12, y: y + 17}, brimmed(name)),
    draw("text", {x: x + 12, y: y + 32}, brimmed(below))];
}

// A curve from the right side of one box to the left side of another.
function link([fromX, fromY], [x, y], kind) {
  const start = fromX + BOX.width, middle = BOX.height / 2, bend = Math.max(20, Math.abs(x - start) / 2);
  return draw("path", {class: kind, d: `M${start} ${fromY + middle}C${start + bend} ${fromY + middle} ${x - bend} ${y + middle} ${x} ${y + middle}`});
}

function judges() {
  if (!DATA.judges.length) return;
  const share = ([hits, n]) => n ? `${percent(hits / n)} of ${whole(n)}` : "";
  const heads = [{name: "Round"}, {name: "Stage"}, {name: "Judge"}, {name: "Protocol"},
    ...["Contests", "Failed", "Ties", "Orders disagree", "Shown first wins", "Longer wins", "On the labels"].map((name) => ({name, number: true}))];
  const rows = DATA.judges.map((j) => [roundName(j.round), j.stage, j.judge, j.protocol, whole(j.contests), share(j.failures), share(j.ties),
    share(j.flips), share(j.shown_first), share(j.longer), j.mass === null ? "" : percent(j.mass)]);
  section("judges", "Judges", make("p", {class: "note"}, "Each contest is asked in both orders. Where the orders name different outputs, the judge " +
    "follows the place and not the text; \u201cshown first wins\u201d is 50 % for a judge without such a liking. " +
    "\u201cLonger wins\u201d is the share of verdicts for the longer of two unequal texts, where the run keeps both. \u201cOn the labels\u201d is the share of " +
    "the probability that the labels had of all that could follow."), table(heads, rows, "Conduct of the judges"));
}
