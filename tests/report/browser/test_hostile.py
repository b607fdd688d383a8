"""Nothing that a model wrote runs in the page."""


def test_hostile_text_is_shown_and_never_runs(shown):
    shown.search("answers", "onerror")
    shown.until(lambda: shown.count() == 1)
    detail = shown.one("#answers .detail").text
    assert "</script><img src=x onerror=" in detail
    assert "{{script}} &lt;b&gt; `${1+1}`" in detail
    marks = {mark.text for mark in shown.all("#answers .detail .control")}
    assert {"U+202E", "U+202C", "U+200B", "U+0000", "U+2028", "U+E0041"} <= marks
    assert shown.nothing_ran() and shown.get_log("browser") == []


def test_the_policy_stops_a_script_that_gets_in_all_the_same(shown):
    """The second wall: were a text ever parsed as HTML, its code would still not run."""
    shown.execute_script(
        "document.body.insertAdjacentHTML('beforeend', "
        "'<img src=x onerror=\"document.documentElement.dataset.pwned=1\">')"
    )
    told = lambda: [entry["message"] for entry in shown.get_log("browser")]  # noqa: E731
    shown.until(lambda: any("Content Security Policy" in message for message in told()))
    assert shown.execute_script("return document.documentElement.dataset.pwned") is None
