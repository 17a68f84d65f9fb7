"""For the site: what of a page leads out of docs/, to a file of the repository, becomes that file's name."""

import re

OUTWARD = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)]+)\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """`[words](../FILE)` -> words (`FILE`), and the words alone where they are the file's name."""
    return OUTWARD.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    words, file = link[1], link[2].replace("../", "")
    return f"`{file}`" if words in (file, file.rpartition("/")[2]) else f"{words} (`{file}`)"
