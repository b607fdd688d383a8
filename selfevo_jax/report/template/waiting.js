// Stands in for the page of a run that cannot be shown yet, and says why.
function waiting() {
  MAIN.append(make("section", {"aria-labelledby": "waiting-title"},
    make("h1", {id: "waiting-title"}, "Waiting for the run"), make("p", {class: "lead plain"}, DATA.reason),
    make("p", {class: "note"}, "The page comes by itself as soon as there is something to see.")));
}

present("live", [waiting]);
