"""The bibliography and the citation file: every entry whole, cited, and of a known form.

Evidence: pybtex reads the entries, YAML the citation file; the fields are those of the Citation
File Format, version 1.2.0.
"""

import re

import pytest
import yaml
from pybtex.database import parse_file

from tests.support.paths import ROOT

ENTRIES = parse_file(ROOT / "book" / "references.bib").entries
TEXTS = [
    path.read_text()
    for folder in ("book", "notebooks")
    for path in (ROOT / folder).glob("*.*")
    if path.suffix in (".md", ".ipynb")
]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
FIELDS = set(
    "abstract authors cff-version commit contact date-released doi identifiers keywords license "
    "license-url message preferred-citation references repository repository-artifact "
    "repository-code title type url version".split()
)
PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "orcid", "affiliation"}


@pytest.mark.parametrize("key", ENTRIES)
def test_entry_is_whole(key):
    entry = ENTRIES[key]
    assert entry.persons["author"] and entry.fields["title"]
    year = entry.fields["year"]
    assert re.fullmatch(r"(19|20)\d\d", year) and key.endswith(year)
    first = entry.persons["author"][0].last_names[-1]
    letters = re.sub(r"[^a-z]", "", re.sub(r"\\\W\{?", "", first).lower())
    assert key.startswith(letters), letters
    venue = {"inproceedings": "booktitle", "article": "journal"}.get(entry.type)
    if venue:
        assert entry.fields[venue]
    else:
        source = entry.fields.get("howpublished", "") + entry.fields.get("eprint", "")
        assert re.search(r"\d{4}\.\d{5}", source)
    if arxiv := re.search(r"arXiv:(\d\d)\d\d\.\d{4,5}", str(dict(entry.fields))):
        assert 0 <= int(year) - 2000 - int(arxiv[1]) <= 2  # published in the years that follow
    if "pages" in entry.fields:
        first_page, last_page = map(int, entry.fields["pages"].split("--"))
        assert first_page < last_page
    if entry.fields.get("series"):
        assert {"volume", "pages"} <= set(entry.fields)


def test_every_entry_is_cited_and_every_citation_has_an_entry():
    cited = {
        key.strip()
        for text in TEXTS
        for keys in re.findall(r"\{cite:[pt]\}`([^`]+)`", text)
        for key in keys.split(",")
    }
    assert cited == set(ENTRIES)


def test_citation_file_has_the_fields_of_its_format():
    assert CITATION["cff-version"] == "1.2.0"
    assert set(CITATION) <= FIELDS
    assert {"message", "title", "authors"} <= set(CITATION)
    assert CITATION["type"] in ("software", "dataset")
    assert all(isinstance(CITATION[name], str) for name in ("message", "title", "abstract"))
    assert all(isinstance(word, str) for word in CITATION["keywords"])
    for work in (CITATION, *CITATION["references"]):
        assert {"type", "title", "authors"} <= set(work)
        for author in work["authors"]:
            assert set(author) <= PERSON or "name" in author
    for reference in CITATION["references"]:
        assert reference["type"] in ("article", "conference-paper", "unpublished", "software")
        assert isinstance(reference["year"], int)
        for identifier in reference["identifiers"]:
            assert identifier["type"] in ("doi", "url", "swh", "other") and identifier["value"]
