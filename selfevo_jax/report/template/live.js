// Follows a running run: loads the page again when its files changed, or offers to while a reader
// is at work in it.
(() => {
  const note = make("p", {class: "note", role: "status", id: "live"});
  MAIN.prepend(note);
  // Said once: what is written again is read out again, and a button in it loses the focus.
  let said = "";
  const say = (words, ...more) => {
    if (words !== said) note.replaceChildren(said = words, ...more);
  };
  const reading = () => document.activeElement !== MAIN && MAIN.contains(document.activeElement);
  async function look() {
    try {
      const answer = await fetch("version", {cache: "no-store"});
      const changed = answer.ok && await answer.text() !== DATA.version;
      if (changed && !reading()) return location.reload();
      if (changed) say("There is more to see. ", make("button", {type: "button", onclick: () => location.reload()}, "Show it"));
      else say("Following the run.");
    } catch {
      say("The server has stopped; this is the last that it said.");
    }
    setTimeout(look, 2000);
  }
  look();
})();
