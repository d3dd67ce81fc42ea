"""The page of public teachers, from the catalogue."""

from urllib.parse import urlsplit

from manual.text import code, table
from pipeline.teachers import catalogue
from pipeline.teachers.catalogue import Entry, NamedTeacher
from pipeline.teachers.download import page as page_of

INTRO = """# Public teachers

What `traflow-pipeline teachers` lists: the networks that `--teacher` takes by name. `traflow-pipeline teachers
fetch NAME` downloads one, and `teachers check NAME` tries it. FIDs are as published, over 50,000 samples, with the
evaluations that they were sampled with; none was measured here. [Teachers](../how-to/teacher.md) has where the
files lie, what is checked, and how to bring one of your own.
"""


def page() -> str:
    """A row for each public teacher."""
    named = [known for known in catalogue.named_teachers().values() if not known.is_own]
    headings = ["name", "data set", "shape", "parameters", "FID (evaluations)", "licence", "from"]
    return f"{INTRO}\n{table(headings, map(_row, named))}\n"


def _row(known: NamedTeacher) -> tuple[str, ...]:
    entry = known.entry
    shape = "x".join(map(str, entry.network.shape)) if entry.network else ""
    parameters = f"{entry.parameters:g} M" if entry.parameters else ""
    return code(known.name), entry.data_set, shape, parameters, _fid(entry), entry.licence, _origin(entry)


def _fid(entry: Entry) -> str:
    return f"{entry.fid.value} ({entry.fid.evaluations})" if entry.fid else ""


def _origin(entry: Entry) -> str:
    return urlsplit(page_of(entry.source)).netloc if entry.source else "embedded"
