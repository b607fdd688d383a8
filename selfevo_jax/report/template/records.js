// What a run decided row by row: the contests of its judges, and what it chose among what it had.
const stageName = ({round, stage}) => `round ${round}, ${stage}`;

// A choice among the values that rows have; null where they all have one.
function byValue(name, rows, value) {
  const found = [...new Set(rows.map(value))];
  return found.length < 2 ? null : choice(name, [["", "all"], ...found.map((one) => [one, one])],
    (row, wanted) => wanted === "" || value(row) === wanted, "");
}

const said = (text) => make("div", {class: "said", dir: "auto"}, text);
const titled = (title, text) => text ? [make("h3", {}, title), said(text)] : [];

function contests() {
  const {rows, total} = DATA.contests;
  if (!rows.length) return;
  const show = choice("Show", [["all", "all"], ["flip", "orders disagree (flip)"], ["tie", "tie"], ["failure", "failure"],
    ["first", "first is better"], ["second", "second is better"]],
  (row, value) => value === "all" || (value === "flip" ? row.flip : row.verdict === value), "all");
  const prefix = sharedPrefix(rows.map((row) => row.texts ? row.texts[0] : ""));
  section("contests", "Contests", make("p", {class: "note"}, "What every judge was asked, and what it said in both orders."), browser({
    name: "Contests", unit: "contests", rows, total, filters: [show, byValue("Stage", rows, stageName)].filter(Boolean),
    text: (row) => [...(row.texts || [row.id]), ...row.ballots.map((ballot) => ballot[4]), row.failure || ""].join("\n"),
    label: (row) => ({first: row.texts ? clip(row.texts[0].slice(prefix), 160) : `contest ${row.id}`,
      chip: make("span", {class: "chip" + (row.flip || row.failure ? " bad" : "")}, row.verdict + (row.flip ? ", flip" : "")),
      second: row.texts ? `${clip(row.texts[2])} against ${clip(row.texts[3])}` : stageName(row)}),
    detail: contestDetail,
  }));
}

function contestDetail(row) {
  const chance = (p) => typeof p === "number" ? percent(p) : "", [question, reference, one, two] = row.texts || [];
  const heads = [{name: "Shown first"}, {name: "First is better", number: true}, {name: "On the labels", number: true}, {name: "Said"}];
  const ballots = row.ballots.map(([, order, p, mass, reply, failure]) =>
    [order === "ab" ? "first" : "second", chance(p), chance(mass), failure || clip(reply, 400)]);
  const runs = row.texts ? wordDifference(one, two) : [];
  return [make("p", {class: "facts"}, make("span", {class: "chip"}, row.verdict), row.flip ? make("span", {class: "chip bad"}, "the orders disagree") : null,
    row.p === null ? null : make("span", {}, `first is better: ${percent(row.p)}`), make("span", {}, stageName(row)), make("span", {}, `judge ${row.judge}`),
    row.changed.length ? make("span", {}, `changed before it was shown: ${row.changed.join(", ")}`) : null),
  row.failure ? make("p", {class: "note"}, `It failed: ${row.failure}`) : null,
  ...titled("Asked", question), ...titled("Reference", reference),
  row.texts ? make("div", {class: "sides"}, make("div", {}, make("h3", {}, "First"), side(runs, "old", "del")),
    make("div", {}, make("h3", {}, "Second"), side(runs, "new", "ins")))
    : make("p", {class: "hint"}, "The run does not keep the two texts beside this contest."),
  table(heads, ballots, "Ballots")].filter(Boolean);
}

function selections() {
  const {rows, total} = DATA.selections;
  if (!rows.length) return;
  const kept = (row) => row.replies.filter((reply) => reply[1]), logged = (row) => "rank" in row.figures;
  const strategy = (row) => row.figures.strategy || "one of several replies";
  const prefix = sharedPrefix(rows.map((row) => row.question));
  section("selections", "Selections", make("p", {class: "note"}, "Questions that were chosen to be answered next, with the strategy\u2019s score, " +
    "and replies that a vote or a filter kept of several."), browser({
    name: "Selections", unit: "selections", rows, total,
    filters: [byValue("Stage", rows, stageName), byValue("Chosen by", rows, strategy)].filter(Boolean),
    text: (row) => [row.question, strategy(row), ...row.replies.map((reply) => reply[0])].join("\n"),
    label: (row) => ({first: clip(row.question.slice(prefix), 160),
      chip: make("span", {class: "chip"}, logged(row) ? `${strategy(row)} ${brief(row.figures.score)}` : `${kept(row).length} of ${row.replies.length}`),
      second: logged(row) ? `number ${row.figures.rank + 1} of ${stageName(row)}` : kept(row).length ? clip(kept(row)[0][0]) : "none was kept"}),
    detail: (row) => [make("p", {class: "facts"}, make("span", {}, stageName(row)), make("span", {}, row.id)), ...titled("Question", row.question),
      logged(row) ? table([{name: "Figure"}, {name: "Value", number: true}], Object.entries(row.figures).map(([name, value]) =>
        [name.replaceAll("_", " "), typeof value === "number" ? brief(value) : String(value)]), "Why it was chosen") : null,
      row.replies.length ? make("h3", {}, logged(row) ? "The policy\u2019s own reply" : "Replies") : null,
      ...row.replies.flatMap(([text, chosen]) => [chosen ? make("span", {class: "chip good"}, "kept") : null, said(text)])].filter(Boolean),
  }));
}
