const SUMMARY = DATA.summary, ROUNDS = SUMMARY.rounds;
// A policy of the run's main line is called by its round.
const testName = ({round, title}) => /^(base|round_\d+)$/.test(title) ? roundName(round) : title;

function overview() {
  const task = DATA.headline, gains = SUMMARY.gains[task] || [], gain = gains[SUMMARY.concluded[task]];
  const first = SUMMARY.tested.length ? SUMMARY.tested[0].tasks[task] : null;
  const title = make("h1", {id: "overview-title"});
  const lead = make("p", {class: "lead"});
  if (gain) {
    title.append("Accuracy ", percent(gain.before), make("span", {class: "arrow"}, " \u2192 "), percent(gain.after));
    if (gain.line) lead.append(make("strong", {}, gain.title), ": ");
    lead.append(make("strong", {class: gain.low > 0 ? "up" : gain.high < 0 ? "down" : ""}, `${points(gain.gain)} points`),
      ` (95 % interval ${points(gain.low)} to ${points(gain.high)}) on the same ${whole(gain.n)} held-out questions of ${task}; `,
      `${whole(gain.fixed)} answers fixed, ${whole(gain.broken)} broken, ${pValue(gain.p_value)}. `,
      gain.low > 0 ? make("span", {class: "chip good"}, "the interval excludes zero")
        : gain.high < 0 ? make("span", {class: "chip bad"}, "worse than before")
        : make("span", {class: "chip"}, "no gain shown: the interval holds zero"));
  } else if (first) {
    title.append("Accuracy ", percent(first.score), " before training");
    const reached = gains.map((row) => row.gain);
    lead.append(reached.length ? `${whole(gains.length)} trained policies stand side by side; their gains lie between ${points(Math.min(...reached))} and ` +
      `${points(Math.max(...reached))} points on ${whole(first.n)} held-out questions of ${task}.`
      : `No trained round has been evaluated yet; ${whole(first.n)} held-out questions of ${task}.`);
  } else title.append("Nothing has been evaluated yet");
  const totals = SUMMARY.totals, spent = SUMMARY.cost, now = DATA.now;
  const far = !now ? null : make("p", {class: "note", id: "now"}, `${whole(now.done)} of ${whole(now.planned)} stages are done` +
    (now.stage ? `; ${now.stage} has ${whole(now.lines)} of ${now.amount}.` : "."));
  const cards = [["Trainings", whole(SUMMARY.trainings.length)], totals.samples ? ["Samples", whole(totals.samples)] : null,
    DATA.pairs.total ? ["Preference pairs", whole(DATA.pairs.total)] : null, ["Tokens generated", brief(spent.generated_tokens + spent.measuring.generated_tokens)],
    ["Tokens trained on", brief(spent.trained_tokens)], spent.flops ? ["Training compute", operations(spent.flops)] : null, ["Time of all stages", duration(totals.seconds)]].filter(Boolean);
  MAIN.append(make("section", {id: "overview", "aria-labelledby": "overview-title"},
    make("p", {class: "eyebrow"}, DATA.about.join(" \u00b7 ")), title, lead, far,
    make("dl", {class: "cards"}, cards.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))))));
  document.getElementById("sections").append(make("li", {}, make("a", {href: "#overview"}, "Overview")));
}

function accuracy() {
  const tests = SUMMARY.tested.map((test) => ({...test, name: testName(test)}));
  const tasks = [...new Set(tests.flatMap((test) => Object.keys(test.tasks)))];
  if (!tasks.length) return;
  const heads = [{name: "Task"}, {name: "Policy"}, {name: "n", number: true}, {name: "Accuracy", number: true}, {name: "95 % interval", number: true},
    {name: "Gain", number: true}, {name: "95 % interval of the gain", number: true}, {name: "Answer found", number: true}, {name: "Mean tokens", number: true}];
  const gainOf = (task, test) => (SUMMARY.gains[task] || []).find((g) => g.round === test.round && g.stage === test.stage && g.title === test.title);
  const rows = tasks.flatMap((task) => tests.filter((test) => test.tasks[task]).map((test) => {
    const t = test.tasks[task], g = gainOf(task, test);
    return [task, test.name, whole(t.n), percent(t.score), `${percent(t.low)} to ${percent(t.high)}`,
      g ? points(g.gain) : "", g ? `${points(g.low)} to ${points(g.high)}` : "", percent(t.parsed), t.tokens.toFixed(1)];
  }));
  section("accuracy", "Accuracy", make("p", {class: "note"},
    "Bars are 95 % Wilson intervals. Gains are over the first test on the same questions (Newcombe's paired interval, in percentage points), " +
    "so they can be clear where the bars overlap. A reply without a recognisable answer counts as wrong."),
  make("div", {class: "panels"}, tasks.flatMap((task) => [
    accuracyChart(task, tests.filter((test) => test.tasks[task]).map((test) => ({round: test.round, name: test.name, ...test.tasks[task]}))),
    (SUMMARY.gains[task] || []).length ? gainChart(task, SUMMARY.gains[task].map((g) => ({...g, name: testName(g)}))) : null])),
  table(heads, rows, "Accuracy by task and policy"));
}

const trainingName = ({round, stage}) => `round ${round}` + (stage === "train" ? "" : `, ${stage.replace(/\.train$/, "")}`);

function training() {
  const panels = [["Loss", [["loss", "loss"]]], ["Reward margin", [["margin", "margin"]]],
    ["Rewards", [["reward_chosen", "chosen"], ["reward_rejected", "rejected"]]], ["Pairs ranked right", [["accuracy", "share"]]]];
  const figures = panels.map(([title, names]) => {
    const series = names.filter(([key]) => DATA.curves.some((c) => c.values[key]))
      .map(([key, name]) => ({name, rounds: DATA.curves.filter((c) => c.values[key]).map((c) => c.values[key])}));
    return series.length ? curveChart(title, series, DATA.curves.map((c) => [c.start, trainingName(c)])) : null;
  }).filter(Boolean);
  if (!figures.length) return;
  const heads = [{name: "Training"}, ...["Steps", "Tokens", "First loss", "Last loss", "Last margin", "Samples right"].map((name) => ({name, number: true}))];
  const rows = SUMMARY.trainings.map((t) => [trainingName(t), whole(t.steps), brief(t.tokens),
    ...[["loss", "first"], ["loss", "last"], ["margin", "last"]].map(([key, end]) => t[key] ? brief(t[key][end]) : ""),
    t.sampled.n ? percent(t.sampled.correct / t.sampled.n) : ""]);
  section("training", "Training", DATA.curves_note ? make("p", {class: "note"}, DATA.curves_note) : null,
    make("div", {class: "panels"}, figures), table(heads, rows, "Trainings"));
}

// What a method concludes, as it is printed at the end of its run: x_low and x_high stand beside x.
function tables() {
  const shown = (row, name) => {
    const value = row[name], [low, high] = [row[name + "_low"], row[name + "_high"]];
    const text = (v) => Number.isInteger(v) ? whole(v) : v.toFixed(3).replace("-", MINUS);
    if (typeof value !== "number") return value === null || value === undefined ? "" : clip(value);
    return typeof low === "number" && typeof high === "number" ? `${text(value)} [${text(low)}, ${text(high)}]` : text(value);
  };
  const one = ({name, rows}) => {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((key) => !/_(low|high)$/.test(key));
    const heads = names.map((key) => ({name: key, number: rows.some((row) => typeof row[key] === "number")}));
    return [make("h3", {}, name), table(heads, rows.map((row) => names.map((key) => shown(row, key))), name)];
  };
  const filled = SUMMARY.tables.filter((t) => t.rows.length);
  if (filled.length) section("tables", "What the method concludes", make("p", {class: "note"}, "Brackets hold 95 % intervals."), filled.flatMap(one));
}

function gauges() {
  const rows = SUMMARY.gauges, decided = SUMMARY.accepted;
  if (!rows.length && !decided.length) return;
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => name !== "policy");
  section("gauges", "Gauges and decisions", make("p", {class: "note"},
    "Gauges come from replies at temperature 1 to the same validation questions; entropy and kl are nats by token, kl is to the model of " +
    "round 0. A policy is accepted when it keeps what the best one before it could do on validation questions."),
  rows.length ? table([{name: "Policy"}, ...names.map((name) => ({name, number: true}))],
    rows.map((row) => [row.policy, ...names.map((name) => name in row ? brief(row[name]) : "")]), "Gauges by policy") : null,
  decided.length ? table([{name: "Policy"}, {name: "Accepted"}, ...["Right", "Best before", "Gained", "Lost"].map((name) => ({name, number: true}))],
    decided.map((row) => [row.policy, row.accepted ? "yes" : "no: " + row.why, percent(row.score), percent(row.best_score),
      whole(row.gained), whole(row.lost)]), "Decisions by policy") : null);
}

function overlap() {
  const rows = SUMMARY.overlap, spans = rows.flatMap((row) => row.matches.map((match) => [row.stage, match]));
  if (!rows.length) return;
  section("overlap", "Training records and held-out questions", make("p", {class: "note"},
    "What each training's records share with the held-out questions: 13 words in a row, or the whole question. It was looked at before " +
    "the training began, and decides nothing: shared spans are often quotations or the task's own wording."),
  table([{name: "Training"}, ...["Records", "Questions", "Sharing words", "Whole question"].map((name) => ({name, number: true}))],
    rows.map((row) => [row.stage, ...[row.records, row.tested, row.items, row.exact].map(whole)]), "Overlap by training"),
  spans.length ? make("details", {}, make("summary", {}, "What is shared"), table([{name: "Training"}, {name: "Record"}, {name: "Question"}, {name: "Words"}],
    spans.map(([stage, match]) => [stage, match.record, match.item, match.span]), "Shared words")) : null);
}

function lengths() {
  const {edges, tests} = DATA.lengths;
  if (!tests.length) return;
  const tallest = Math.max(...tests.flatMap((r) => r.counts));
  section("lengths", "Answer lengths", make("p", {class: "note"}, "Held-out answers, all tasks together. The dashed line is the mean. " +
    "A preference loss that rewards length shows here before it shows in accuracy."),
  make("div", {class: "panels small"}, tests.map((row) => lengthChart(row, edges, tallest))));
}

const VERDICTS = {fixed: ["fixed", "good"], broken: ["broken", "bad"], right: ["right both times", ""], wrong: ["wrong both times", ""]};
const verdictOf = (before, after) => after.correct ? (before.correct ? "right" : "fixed") : before.correct ? "broken" : "wrong";

function answers() {
  const {rows, total, tasks, sides} = DATA.answers;
  if (!rows.length) return;
  const options = sides.map((one, i) => [i, testName(one)]);
  const first = choice("Before", options, () => true, 0);
  const second = choice("After", options, () => true, sides.length - 1);
  const reply = (row, select) => unpack(row.replies[Number(select.input.value)]);
  const both = (row) => [reply(row, first), reply(row, second)];
  const show = choice("Show", [["all", "all"], ["wrong", "wrong after"], ["fixed", "fixed"], ["broken", "broken"],
    ["unchanged", "unchanged verdict"], ["unparsed", "no answer found after"]], (row, value) => {
    const [before, after] = both(row);
    if (!before || !after) return value === "all";
    const verdict = verdictOf(before, after);
    return value === "all" || verdict === value || (value === "wrong" && !after.correct)
      || (value === "unchanged" && before.correct === after.correct) || (value === "unparsed" && after.parsed === null);
  }, "all");
  const filters = [show, first, second];
  if (tasks.length > 1) filters.splice(1, 0, choice("Task", [["", "all"], ...tasks.map((t, i) => [i, t])],
    (row, value) => value === "" || row.task === Number(value), ""));
  const prefix = sharedPrefix(rows.map((row) => row.question));
  section("answers", "Answers before and after", browser({
    name: "Answers", unit: "answers", rows, total, filters,
    text: (row) => [row.question, row.gold, ...row.replies.filter(Boolean).map((r) => r[0])].join("\n"),
    label: (row) => {
      const [before, after] = both(row), verdict = before && after ? VERDICTS[verdictOf(before, after)] : ["one side only", ""];
      return {first: clip(row.question.slice(prefix), 160), chip: make("span", {class: "chip " + verdict[1]}, verdict[0]),
        second: `right answer ${clip(row.gold)} \u00b7 ${clip(before && before.parsed)} \u2192 ${clip(after && after.parsed)}`};
    },
    detail: (row) => answerDetail(row, ...both(row), [first, second].map((s) => testName(sides[Number(s.input.value)])), tasks),
  }));
}

const unpack = (packed) => packed && {text: packed[0], parsed: packed[1], correct: Boolean(packed[2]), tokens: packed[3], score: packed[4]};

// How many characters, up to a space, every one of the texts begins with.
function sharedPrefix(texts) {
  let shared = texts.length > 1 ? texts[0].length : 0;
  for (const text of texts) while (shared && !text.startsWith(texts[0].slice(0, shared))) shared--;
  return texts[0].slice(0, shared).lastIndexOf(" ") + 1;
}

function answerDetail(row, before, after, names, tasks) {
  const runs = wordDifference(before ? before.text : "", after ? after.text : "");
  const column = (reply, name, kind, tag) => make("div", {}, make("h3", {}, name[0].toUpperCase() + name.slice(1)),
    reply ? facts(reply) : make("p", {class: "hint"}, "not answered in this round"), reply ? side(runs, kind, tag) : null);
  return [make("h3", {}, "Question"), make("p", {class: "facts"}, make("span", {}, tasks[row.task]), make("span", {}, row.id)),
    make("div", {class: "said", dir: "auto"}, row.question),
    make("h3", {}, "Right answer"), make("div", {class: "said", dir: "auto"}, row.gold === null ? "(the task has no single one)" : row.gold),
    make("div", {class: "sides"}, column(before, names[0], "old", "del"), column(after, names[1], "new", "ins"))];
}

function facts(reply) {
  return make("p", {class: "facts"}, make("span", {class: "chip " + (reply.correct ? "good" : "bad")}, reply.correct ? "\u2713 right" : "\u2717 wrong"),
    make("span", {}, reply.parsed === null ? "no answer found" : `read as ${clip(reply.parsed)}`), make("span", {}, `${whole(reply.tokens)} tokens`),
    reply.score > 0 && reply.score < 1 ? make("span", {}, `score ${brief(reply.score)}`) : null);
}

function pairs() {
  const {rows, total} = DATA.pairs;
  if (!rows.length) return;
  const whence = (row) => `round ${row.round}` + (/^pairs?$/.test(row.stage) ? "" : `, ${row.stage.replace(/\.pairs?$/, "")}`);
  const places = [...new Set(rows.map(whence))], prefix = sharedPrefix(rows.map((row) => row.question));
  const filters = places.length < 2 ? [] : [choice("Made in", [["", "all"], ...places.map((place) => [place, place])],
    (row, value) => value === "" || whence(row) === value, "")];
  filters.push(choice("Show", [["all", "all"], ["longer", "chosen is longer"], ["shorter", "chosen is shorter"]], (row, value) => {
    const gap = row.chosen.length - row.rejected.length;
    return value === "all" || (value === "longer" ? gap > 0 : gap < 0);
  }, "all"));
  section("pairs", "Training pairs", make("p", {class: "note"}, "What the model was trained to prefer, and over what."), browser({
    name: "Pairs", unit: "pairs", rows, total, filters,
    text: (row) => [row.question, row.chosen, row.rejected].join("\n"),
    label: (row) => ({first: clip(row.question.slice(prefix), 160), chip: make("span", {class: "chip"}, whence(row)),
      second: `${clip(row.chosen)} over ${clip(row.rejected)}`}),
    detail: (row) => {
      const runs = wordDifference(row.rejected, row.chosen);
      return [make("h3", {}, "Prompt"), make("div", {class: "said", dir: "auto"}, row.question), make("div", {class: "sides"},
        make("div", {}, make("h3", {}, "Chosen"), side(runs, "new", "ins")), make("div", {}, make("h3", {}, "Rejected"), side(runs, "old", "del")))];
    },
  }));
}

function cost() {
  const heads = [{name: "Round"}, ...["All stages", "Tokens sampled", "Tokens trained"].map((name) => ({name, number: true}))];
  const rows = ROUNDS.map((r) => [roundName(r.round), duration(Object.values(r.seconds).reduce((a, b) => a + b, 0)),
    brief(r.tokens.generated), brief(r.tokens.trained)]);
  section("cost", "Compute", make("p", {class: "note"}, "Tokens read count every request's prompt. Stages that look at held-out questions are marked; they decide nothing. " +
    "FLOPs are the multiplications and additions that useful training tokens ask for; MFU is the share of the devices' bf16 peak that they took, where that peak is known."),
  byStage(), goodput(), make("h3", {}, "By round"), table(heads, rows, "Seconds and tokens by round"));
}

// How the seconds of each training were spent, where its files tell.
function goodput() {
  const told = SUMMARY.trainings.filter((t) => t.goodput.share !== undefined);
  if (!told.length) return null;
  const parts = Object.keys(told[0].goodput).filter((name) => !["share", "seconds", "hosts"].includes(name));
  const heads = [{name: "Training"}, ...["Goodput", ...parts].map((name) => ({name, number: true}))];
  const rows = told.map((t) => [trainingName(t), percent(t.goodput.share), ...parts.map((name) => duration(t.goodput[name] || 0))]);
  return make("div", {}, make("h3", {}, "Goodput of training"), make("p", {class: "note"},
    "The share of a training's time that went into steps which were needed; \u201cagain\u201d are steps repeated after a kill."),
  table(heads, rows, "Goodput of training"));
}

function byStage() {
  const stages = SUMMARY.stages, known = (name) => stages.some((s) => s[name] !== null);
  const heads = [{name: "Stage"}, ...["Time", "Generated", "Read", "Trained on", "Tokens/s"].map((name) => ({name, number: true}))];
  const extra = [["flops", "FLOPs", operations], ["mfu", "MFU", percent]].filter(([name]) => known(name));
  heads.push(...extra.map(([, name]) => ({name, number: true})));
  const figures = (row) => {
    const tokens = [row.generated_tokens, row.read_tokens, row.trained_tokens], all = tokens.reduce((a, b) => a + b, 0);
    return [duration(row.seconds), ...tokens.map((n) => n ? brief(n) : ""), all && row.seconds ? brief(all / row.seconds) : "",
      ...extra.map(([name, , shown]) => row[name] ? shown(row[name]) : "")];
  };
  const rows = stages.map((s) => [s.stage + (s.measuring ? " (held out)" : ""), ...figures(s)]);
  rows.push(["The method by itself", ...figures(SUMMARY.cost)], ["Looking at held-out questions", ...figures(SUMMARY.cost.measuring)]);
  return table(heads, rows, "Compute by stage");
}

function repeat() {
  const copied = make("span", {class: "hidden", role: "status"});
  const copy = make("button", {type: "button", onclick: () => navigator.clipboard.writeText(DATA.command).then(() => {
    copy.textContent = copied.textContent = "Copied";
  }, () => { copied.textContent = "Copying is not allowed here"; })}, "Copy");
  const facts = (rows, caption) => make("table", {class: "facts-table"}, make("caption", {class: "hidden"}, caption),
    make("tbody", {}, rows.map(([key, value]) => make("tr", {}, make("th", {scope: "row"}, key), make("td", {}, value)))));
  section("repeat", "Repeat this run",
    DATA.command ? make("div", {class: "panel command"}, make("pre", {tabindex: 0, role: "region", "aria-label": "Command"}, DATA.command), copy, copied)
      : make("p", {class: "note"}, "The run's folder names no command."),
    make("details", {}, make("summary", {}, "Environment"), facts(DATA.environment, "Environment")),
    make("details", {}, make("summary", {}, "Settings"), facts(DATA.settings, "Settings")));
}

present("run report", [overview, accuracy, tables, training, gauges, overlap, lengths, judges, contests, answers, pairs, selections, lineage, cost, repeat]);
