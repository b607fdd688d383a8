// Follows a running run: loads the page again when its files changed, or offers to while a reader
// is at work in it.
(() => {
  const note = make("p", {class: "note", role: "status", id: "live"}, "Following the run.");
  MAIN.prepend(note);
  const reading = () => document.activeElement !== MAIN && MAIN.contains(document.activeElement);
  async function look() {
    try {
      const answer = await fetch("version", {cache: "no-store"});
      const changed = answer.ok && await answer.text() !== DATA.version;
      if (changed && !reading()) return location.reload();
      if (changed) note.replaceChildren("There is more to see. ",
        make("button", {type: "button", onclick: () => location.reload()}, "Show it"));
    } catch {
      note.replaceChildren("The server has stopped; this is the last that it said.");
    }
    setTimeout(look, 2000);
  }
  look();
})();
