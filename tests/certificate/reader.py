"""What a browser would read on a page, and whatever it would fetch for it."""

from __future__ import annotations

from html.parser import HTMLParser

EMPTY = {"meta", "br", "img", "link", "input", "hr"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.fetched, self.opened = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in EMPTY:
            self.opened.append(tag)
        named = dict(attributes)
        self.fetched += [named[key] for key in ("src", "href") if key in named]
        if tag in ("script", "link", "img", "iframe"):
            self.fetched.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.opened and self.opened[-1] != "style":
            self.text.append(data)
        elif "url(" in data or "@import" in data:
            self.fetched.append(data)


def texts_of(page: str) -> tuple[str, list[str]]:
    """The text of a page, with the tags left out, and what it would fetch.

    Raises:
        AssertionError: tags are not nested.
    """
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.opened == [], f"never closed: {reader.opened}"
    return "".join(reader.text), reader.fetched
