// A list with search and filters, one page of rows in the document at a time, and the chosen row in
// full beside it. `rows` may hold 100,000 entries: a filter is one pass, a page is 15 elements.
const PAGE = 15;

function browser({name, rows, total, filters, text, label, detail, unit}) {
  const state = {shown: rows, page: 0, chosen: null};
  let haystacks = null;
  const list = make("ul", {class: "rows", onkeydown: moveInList});
  const status = make("span", {role: "status"});
  const pane = make("div", {class: "panel detail", role: "region", "aria-label": `${name}: the chosen one in full`, tabindex: 0});
  const before = make("button", {type: "button", onclick: () => turn(-1)}, "Previous");
  const after = make("button", {type: "button", onclick: () => turn(1)}, "Next");
  const search = make("input", {type: "search", placeholder: "words in the question or the answers", oninput: soon(apply)});
  const form = make("form", {class: "controls", role: "search", "aria-label": `Filter the ${unit}`, onsubmit: (e) => e.preventDefault()},
    filters.map((filter) => make("label", {}, filter.name, filter.input)),
    make("label", {class: "wide"}, "Search", search));
  filters.forEach((filter) => filter.input.addEventListener("change", apply));

  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !haystacks) haystacks = new Map(rows.map((row) => [row, text(row).toLowerCase()]));
    state.shown = rows.filter((row) => filters.every((f) => f.keep(row))
      && words.every((word) => haystacks.get(row).includes(word)));
    state.page = 0;
    choose(state.shown[0] || null);
  }

  function turn(by) {
    state.page += by;
    choose(state.shown[state.page * PAGE]);
  }

  function choose(row) {
    state.chosen = row;
    pane.replaceChildren(...(row ? detail(row) : [make("p", {class: "hint"}, `No ${unit} match.`)]));
    pane.scrollTop = 0;
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE)), from = state.page * PAGE;
    list.replaceChildren(...state.shown.slice(from, from + PAGE).map((row) => {
      const {first, second, chip} = label(row);
      return make("li", {}, make("button", {type: "button", "aria-current": row === state.chosen ? "true" : null, onclick: () => {
        choose(row);
        list.querySelector("[aria-current]").focus();
      }}, make("span", {class: "first"}, first), chip, make("span", {class: "second"}, second)));
    }));
    before.disabled = state.page === 0;
    after.disabled = state.page >= pages - 1;
    status.textContent = `${whole(state.shown.length)} ${unit}` + (pages > 1 ? `, page ${whole(state.page + 1)} of ${whole(pages)}` : "");
  }

  function moveInList(event) {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    const buttons = [...list.querySelectorAll("button")], next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) next.click();
    event.preventDefault();
  }

  apply();
  const left = total > rows.length
    ? make("p", {class: "note"}, `The first ${whole(rows.length)} of ${whole(total)} ${unit} are kept in this page; all are in the run's folder.`) : null;
  return make("div", {}, left, form, make("div", {class: "browser"},
    make("div", {class: "panel list"}, list, make("div", {class: "pager"}, before, status, after)), pane));
}

function soon(action) {
  let waiting = 0;
  return () => { clearTimeout(waiting); waiting = setTimeout(action, 150); };
}

// A labelled choice; `keep` is asked with the row and the chosen value.
function choice(name, options, keep, chosen) {
  const input = make("select", {}, options.map(([value, words]) =>
    make("option", {value, selected: String(value) === String(chosen)}, words)));
  return {name, input, keep: (row) => keep(row, input.value)};
}
