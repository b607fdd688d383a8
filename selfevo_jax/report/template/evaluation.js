// The page of an evaluation: its figures, and every question with what became of it.
function overview() {
  MAIN.append(make("section", {"aria-labelledby": "overview-title"}, make("h1", {id: "overview-title"}, "Evaluation of ", DATA.name)));
}

function figures() {
  const heads = ["Task", "Reading", "Metric"].map((name) => ({name})).concat(
    ["n", "Value", "95 % interval", "Standard error", "Answer found"].map((name) => ({name, number: true})));
  const number = (value) => value === null ? "" : value.toFixed(3);
  section("figures", "Figures", make("p", {class: "note"}, DATA.note),
    table(heads, DATA.figures.map((f) => [f.task, f.reading, f.metric, whole(f.n), number(f.mean),
      `${number(f.low)} to ${number(f.high)}`, number(f.error), percent(f.parsed, 0)]), "Figures by task"),
    DATA.notes.map((note) => make("p", {class: "note"}, note)));
}

const VERDICTS = {fixed: ["fixed", "good"], broken: ["broken", "bad"], right: ["right", "good"], wrong: ["wrong", "bad"],
  lost: ["no verdict", ""]};

function verdictOf(row) {
  if (row.after.lost) return "lost";
  if (!row.before || row.before.right === row.after.right) return row.after.right ? "right" : "wrong";
  return row.after.right ? "fixed" : "broken";
}

function items() {
  const {rows, total} = DATA.items, compared = rows.some((row) => row.before);
  const options = [["all", "all"], ["wrong", "wrong"], ["right", "right"], ["unparsed", "no answer found"]];
  if (rows.some((row) => row.after.lost)) options.push(["lost", "no verdict"]);
  if (compared) options.push(["fixed", "fixed"], ["broken", "broken"]);
  const filters = [choice("Show", options, (row, value) => value === "all" || verdictOf(row) === value
    || (value === "wrong" && !row.after.right && !row.after.lost) || (value === "right" && row.after.right)
    || (value === "unparsed" && row.after.parsed === null && !row.after.lost), "all")];
  if (DATA.tasks.length > 1) filters.unshift(choice("Task", [["", "all"], ...DATA.tasks.map((task) => [task, task])],
    (row, value) => value === "" || row.task === value, ""));
  section("items", "Questions", browser({
    name: "Questions", unit: "questions", rows, total, filters,
    text: (row) => [row.prompt, row.gold, row.after.text, row.before ? row.before.text : ""].join("\n"),
    label: (row) => {
      const [words, kind] = VERDICTS[verdictOf(row)];
      return {first: clip(row.prompt.slice(-160), 160), chip: make("span", {class: "chip " + kind}, words),
        second: `${row.task} \u00b7 right answer ${clip(row.gold)} \u00b7 read ${clip(row.after.parsed)}`};
    },
    detail,
  }));
}

function detail(row) {
  const reply = (of, name, said) => make("div", {}, make("h3", {}, name), make("p", {class: "facts"},
    of.lost ? make("span", {class: "chip"}, "no verdict")
      : make("span", {class: "chip " + (of.right ? "good" : "bad")}, of.right ? "\u2713 right" : "\u2717 wrong"),
    make("span", {}, of.lost || (of.parsed === null ? "no answer found" : `read as ${clip(of.parsed)}`)),
    make("span", {}, of.scores)), said);
  const runs = row.before ? wordDifference(row.before.text, row.after.text) : [["same", [row.after.text]]];
  const after = reply(row.after, row.before ? "After" : "Reply", side(runs, "new", "ins"));
  return [make("h3", {}, "Prompt"), make("p", {class: "facts"}, make("span", {}, row.task), make("span", {}, row.place)),
    make("div", {class: "said", dir: "auto"}, row.prompt), make("h3", {}, "Right answer"),
    make("div", {class: "said", dir: "auto"}, row.gold),
    row.before ? make("div", {class: "sides"}, reply(row.before, "Before", side(runs, "old", "del")), after) : after];
}

present("evaluation", [overview, figures, items]);
