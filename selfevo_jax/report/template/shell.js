// What every page has: its data, its sections, its name, and the theme.
const DATA = JSON.parse(document.getElementById("data").textContent);
const MAIN = document.getElementById("main");

function section(id, title, ...content) {
  MAIN.append(make("section", {id, "aria-labelledby": id + "-title"},
    make("h2", {id: id + "-title"}, title), ...content));
  document.getElementById("sections").append(make("li", {}, make("a", {href: "#" + id}, id[0].toUpperCase() + id.slice(1))));
}

const clip = (value, most = 60) => value === null || value === undefined ? "none" : String(value).slice(0, most).replaceAll("\n", " ");

function theme() {
  const button = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const isDark = () => chosen === null ? dark.matches : chosen;
  const label = () => { button.replaceChildren(isDark() ? "Light theme" : "Dark theme"); };
  button.addEventListener("click", () => {
    chosen = !isDark();
    document.documentElement.style.colorScheme = chosen ? "dark" : "light";
    label();
  });
  dark.addEventListener("change", label);
  label();
}

// Names the page, draws its parts, and says that it is ready.
function present(kind, parts) {
  document.getElementById("run-name").append(visible(DATA.name));
  document.title = `${DATA.name.replace(HIDDEN, "")} \u2013 selfevo ${kind}`;
  document.getElementById("footer").append(visible(DATA.footer));
  theme();
  for (const part of parts) part();
  document.documentElement.dataset.ready = "true";
}
