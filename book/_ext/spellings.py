"""Sphinx extension: the book's search finds American and British spelling alike.

The book is written in British spelling, the paper in American. The same rules turn the words of the
index and the words that a reader looks for into British ones: here when the index is made, and in
the browser by the splitter of the search. So "regularizer" and "regulariser" are one word, and the
index holds it once.
"""

import json
import re
from functools import cache
from typing import Any

from sphinx.search import SearchEnglish

# A pattern of the end or the whole of a word, and what it becomes. Both Python and JavaScript read
# them, so they use what the two have in common; $1 and $2 are groups. Words are in small letters.
RULES = (
    # generalize, regularizer, optimization; not size, resize, prize, seize
    (
        r"^(?!.*_?(?:pri|sei)z)(?!(?:.*_)?(?:re|cap|over)?siz)(\w{2,})iz(e|es|ed|er|ers|ing)$",
        "$1is$2",
    ),
    (r"^(\w{2,})iz(ation|ations|able|ational)$", "$1is$2"),
    (r"^(\w*(?:anal|paral|catal))yz(e|es|ed|er|ers|ing)$", "$1ys$2"),
    (
        r"^((?:\w*_)?(?:col|behavi|neighb|fav|hon|lab|flav))or(s|ed|ing|al|hood|hoods|less)?$",
        "$1our$2",
    ),
    (r"^(\w*(?:label|model|level|travel|cancel|signal|channel))(ed|ing|er|ers)$", "$1l$2"),
    (r"^((?:\w*_)?)center(s?)$", "$1centre$2"),
    (r"^((?:\w*_)?)center(ed|ing)$", "$1centr$2"),
    (r"^((?:\w*_)?)gray(s|scale)?$", "$1grey$2"),
    (r"^(catalog|dialog)(s?)$", "$1ue$2"),
    (r"^(judg|acknowledg)ment(s?)$", "$1ement$2"),
    (r"^artifact(s?)$", "artefact$1"),
    (r"^licens(e|es)$", "licenc$1"),
    (r"^(defen|offen)se(s?)$", "$1ce$2"),
    (r"^learned$", "learnt"),
)
PATTERNS = [(re.compile(pattern), re.sub(r"\$(\d)", r"\\\1", new)) for pattern, new in RULES]

# In place of the splitter in Sphinx's searchtools.js, which takes the same words apart.
SPLITTER = """
/* Words in small letters and in British spelling: book/_ext/spellings.py has the same rules. */
const SPELLINGS = %s.map(([pattern, british]) => [new RegExp(pattern), british]);
function splitQuery(query) {
  return query.split(/[^\\p{Letter}\\p{Number}_\\p{Emoji_Presentation}]+/gu)
    .filter((word) => word)
    .map((word) => SPELLINGS.reduce(
      (spelt, [pattern, british]) => spelt.replace(pattern, british), word.toLowerCase()));
}
"""


@cache  # the book's words come again and again
def to_british(word: str) -> str:
    """A word in small letters and in British spelling.

    Example:
        >>> [to_british(word) for word in ("Regularizer", "colors", "labeled", "size")]
        ['regulariser', 'colours', 'labelled', 'size']
    """
    word = word.lower()
    for pattern, british in PATTERNS:
        word = pattern.sub(british, word)
    return word


class SearchBothSpellings(SearchEnglish):
    """Sphinx's English search, in which American and British spelling are one."""

    js_splitter_code = SPLITTER % json.dumps(RULES)

    def split(self, text: str) -> list[str]:
        """The words of a text, in small letters and in British spelling."""
        return [to_british(word) for word in super().split(text)]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_search_language(SearchBothSpellings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
