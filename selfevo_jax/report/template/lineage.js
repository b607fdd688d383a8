// What each policy came from, as a drawing with its figures in a table, and how the judges behaved.
function lineage() {
  const nodes = DATA.lineage;
  if (nodes.length < 2) return;
  const heads = ["Policy", "Started from", "Model", "Trained in", "Trained on", "Hash"].map((name) => ({name}));
  heads.splice(5, 0, {name: "Examples", number: true});
  const rows = nodes.map((n) => [n.name, n.parent || "", n.model || "", n.stage || "", n.inputs.filter((i) => i !== "policy").join(", "),
    n.counts.examples ? whole(n.counts.examples) : "", n.hash]);
  section("lineage", "Lineage", make("figure", {class: "panel"}, family(nodes)), table(heads, rows, "Policies and what they came from"));
}

// Policies in columns by the number of trainings behind them, a line from each to its parent.
function family(nodes) {
  const wide = 190, tall = 58, box = {width: 150, height: 40}, columns = new Map(), at = new Map();
  for (const node of nodes) {
    const row = columns.get(node.depth) || 0;
    columns.set(node.depth, row + 1);
    at.set(node.name, [10 + wide * node.depth, 10 + tall * row]);
  }
  const size = [10 + wide * (1 + Math.max(...columns.keys())), 10 + tall * Math.max(...columns.values())];
  const spoken = nodes.map((n) => n.parent ? `${n.name} from ${n.parent}` : n.name).join("; ");
  const svg = draw("svg", {viewBox: `0 0 ${size[0]} ${size[1]}`, role: "img", "aria-label": `Lineage: ${spoken}`});
  svg.style.maxWidth = size[0] + "px";
  for (const node of nodes.filter((n) => at.has(n.parent))) {
    const [x, y] = at.get(node.name), [fromX, fromY] = at.get(node.parent);
    svg.append(draw("path", {class: "line faint", d: `M${fromX + box.width} ${fromY + 20}L${x} ${y + 20}`}));
  }
  for (const node of nodes) {
    const [x, y] = at.get(node.name);
    svg.append(draw("rect", {class: "node", x, y, rx: 8, ...box}),
      draw("text", {class: "value", x: x + 12, y: y + 17}, clip(node.name, 20)),
      draw("text", {x: x + 12, y: y + 32}, node.counts.examples ? `${whole(node.counts.examples)} examples` : clip(node.model, 20)));
  }
  return svg;
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
