// Small charts in SVG, each with a spoken description and its figures in a table beneath.
const CHART = {width: 520, height: 240, left: 46, right: 14, top: 26, bottom: 38};
const SMALL_CHART = {...CHART, width: 340, height: 180, left: 34};

function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) || 10);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step + 0);
  return found;
}

function frame({x, y, xTicks, yTicks, yText = brief, xText = brief, xLabel, spoken, size = CHART}) {
  const {width, height, left, right, top, bottom} = size;
  const atX = (v) => left + (width - left - right) * (v - x[0]) / (x[1] - x[0] || 1);
  const atY = (v) => height - bottom - (height - top - bottom) * (v - y[0]) / (y[1] - y[0] || 1);
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken});
  for (const v of yTicks) {
    svg.append(draw("line", {class: "grid", x1: left, x2: width - right, y1: atY(v), y2: atY(v)}));
    svg.append(draw("text", {x: left - 7, y: atY(v) + 4, "text-anchor": "end"}, yText(v)));
  }
  for (const v of xTicks)
    svg.append(draw("text", {x: atX(v), y: height - bottom + 17, "text-anchor": "middle"}, xText(v)));
  svg.append(draw("text", {x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle"}, xLabel));
  return {svg, atX, atY};
}

// rows: [{round, value, low, high}]: a dot and its 95 % interval per round, joined by a line.
function intervalChart({title, rows, range, text, axisText}) {
  const last = rows[rows.length - 1];
  const {svg, atX, atY} = frame({
    x: [rows[0].round - 0.5, last.round + 0.5], y: range, yTicks: ticks(...range, 4), yText: axisText,
    xTicks: rows.map((r) => r.round), xText: String, xLabel: "round (0: before training)",
    spoken: `${title} by round: ` + rows.map((r) =>
      `round ${r.round} ${text(r.value)}, interval ${text(r.low)} to ${text(r.high)}`).join("; "),
  });
  if (range[0] < 0) svg.append(draw("line", {class: "zero", x1: CHART.left, x2: CHART.width - CHART.right, y1: atY(0), y2: atY(0)}));
  svg.append(draw("polyline", {class: "line faint", points: rows.map((r) => `${atX(r.round)},${atY(r.value)}`).join(" ")}));
  for (const r of rows) {
    const at = atX(r.round);
    svg.append(draw("path", {class: "whisker", fill: "none",
      d: `M${at - 6} ${atY(r.high)}h12M${at} ${atY(r.high)}V${atY(r.low)}M${at - 6} ${atY(r.low)}h12`}));
    svg.append(draw("circle", {class: "dot", cx: at, cy: atY(r.value), r: 5}));
    svg.append(draw("text", {class: "value", x: at, y: atY(r.high) - 7, "text-anchor": "middle"}, text(r.value)));
  }
  return make("figure", {class: "panel"}, make("h3", {}, title), svg);
}

// The same for tests that are no rounds of one line: a row for each, its name at the left.
function forestChart({title, rows, range, text, axisText}) {
  const size = {...CHART, left: 190, height: CHART.top + CHART.bottom + 26 * rows.length};
  const {svg, atX} = frame({size, x: range, y: [0, 1], xTicks: ticks(...range, 4), xText: axisText, yTicks: [], xLabel: "",
    spoken: `${title}: ` + rows.map((r) => `${r.name} ${text(r.value)}, interval ${text(r.low)} to ${text(r.high)}`).join("; ")});
  if (range[0] < 0) svg.append(draw("line", {class: "zero", x1: atX(0), x2: atX(0), y1: CHART.top - 10, y2: size.height - CHART.bottom}));
  rows.forEach((r, i) => {
    const y = CHART.top + 26 * i + 6;
    svg.append(draw("text", {x: size.left - 14, y: y + 4, "text-anchor": "end"}, clip(r.name, 28)),
      draw("path", {class: "whisker", fill: "none", d: `M${atX(r.low)} ${y - 5}v10M${atX(r.low)} ${y}H${atX(r.high)}M${atX(r.high)} ${y - 5}v10`}),
      draw("circle", {class: "dot", cx: atX(r.value), cy: y, r: 5}),
      draw("text", {class: "value", x: atX(r.value), y: y - 8, "text-anchor": "middle"}, text(r.value)));
  });
  return make("figure", {class: "panel"}, make("h3", {}, title), svg);
}

// Rounds of one line are joined; where rows have other names, each has a line of its own.
const intervals = (chart) => (chart.rows.every((r) => r.name === roundName(r.round)) ? intervalChart : forestChart)(chart);

function accuracyChart(task, rows) {
  const low = Math.min(...rows.map((r) => r.low)), high = Math.max(...rows.map((r) => r.high));
  const range = [low > 0.5 ? Math.floor(10 * low - 1) / 10 : 0, Math.min(1, Math.ceil(10 * high + 0.5) / 10)];
  return intervals({title: `Accuracy on ${task}`, range, text: percent, axisText: (v) => Math.round(100 * v) + " %",
    rows: rows.map((r) => ({...r, value: r.score}))});
}

function gainChart(task, rows) {
  const low = Math.min(0, ...rows.map((r) => r.low)), high = Math.max(0, ...rows.map((r) => r.high)), margin = 0.15 * (high - low || 0.1);
  return intervals({title: `Gain over the first test on ${task}, points`, range: [low - margin, high + margin], text: points, axisText: (v) => Math.round(100 * v) ? points(v).replace(/\.0$/, "") : "0",
    rows: rows.map((r) => ({...r, value: r.gain}))});
}

// series: [{name, points: [[step, value], …] per round}]; splits: [[step, label], …]
function curveChart(title, series, splits) {
  const all = series.flatMap((s) => s.rounds.flat());
  const span = (i) => all.reduce(([a, b], p) => [Math.min(a, p[i]), Math.max(b, p[i])], [Infinity, -Infinity]);
  const x = span(0), y = span(1), margin = 0.06 * (y[1] - y[0] || Math.abs(y[0]) || 1);
  const range = [y[0] - margin, y[1] + margin];
  const ends = series.map((s) => {
    const flat = s.rounds.flat();
    return `${s.name} from ${brief(flat[0][1])} to ${brief(flat[flat.length - 1][1])}`;
  });
  const {svg, atX, atY} = frame({x, y: range, xTicks: ticks(...x, 5).filter(Number.isInteger),
    yTicks: ticks(...range, 4), xLabel: "optimiser step, all trainings", spoken: `${title}: ${ends.join("; ")}`});
  let free = 0;  // where the next name may begin; those without room stand in the table
  for (const [step, label] of splits) {
    svg.append(draw("line", {class: "split", x1: atX(step), x2: atX(step), y1: CHART.top - 6, y2: CHART.height - CHART.bottom}));
    if (atX(step) < free || atX(step) + 6 * label.length > CHART.width) continue;
    svg.append(draw("text", {x: atX(step) + 4, y: CHART.top - 8}, label));
    free = atX(step) + 6.5 * label.length + 10;
  }
  series.forEach((s, i) => s.rounds.forEach((points) => svg.append(draw("polyline", {
    class: "line" + (i ? " second" : ""), points: points.map((p) => `${atX(p[0])},${atY(p[1])}`).join(" ")}))));
  const legend = series.length < 2 ? null : make("p", {class: "legend", "aria-hidden": "true"}, series.map((s, i) =>
    make("span", {}, draw("svg", {viewBox: "0 0 30 8"}, draw("line", {class: "line" + (i ? " second" : ""), x1: 0, x2: 30, y1: 4, y2: 4})), s.name)));
  return make("figure", {class: "panel"}, make("h3", {}, title), svg, legend);
}

function lengthChart(row, edges, tallest) {
  const {svg, atX, atY} = frame({size: SMALL_CHART, x: [edges[0], edges[edges.length - 1]], y: [0, tallest],
    xTicks: ticks(edges[0], edges[edges.length - 1], 4), yTicks: ticks(0, tallest, 3), xLabel: "tokens in the answer",
    spoken: `Answer lengths ${testName(row)}: mean ${row.mean.toFixed(1)} tokens over ${whole(row.n)} answers`});
  row.counts.forEach((count, i) => {
    if (count) svg.append(draw("rect", {class: "box", x: atX(edges[i]) + 0.5, y: atY(count),
      width: Math.max(1, atX(edges[i + 1]) - atX(edges[i]) - 1), height: atY(0) - atY(count)}));
  });
  svg.append(draw("line", {class: "mean", x1: atX(row.mean), x2: atX(row.mean), y1: SMALL_CHART.top, y2: atY(0)}));
  return make("figure", {class: "panel"}, make("h3", {}, testName(row)), svg,
    make("p", {class: "hint"}, `mean ${row.mean.toFixed(1)}, longest ${whole(row.longest)}` +
      (row.over ? `; ${whole(row.over)} answers in the last bar are longer than it` : "")));
}
