"""The guides and docstrings of rooms for users of other packages, which run where those packages are."""

import pytest

import test_docs

ROOMS = [name for name in test_docs.NEEDED if not name.endswith(".md")]
GUIDES = [path for path in test_docs.DOCUMENTS if path.name in test_docs.NEEDED]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_guide(path, tmp_path):
    test_docs.skip_where_lacking(path.name)
    troubles = test_docs.troubles_of(path, tmp_path)
    assert not troubles, "\n".join(troubles)


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings(room, tmp_path):
    test_docs.skip_where_lacking(room)
    modules = [name for name in test_docs.MODULES if name == room or name.startswith(f"{room}.")]
    assert len(modules) > 1
    found = test_docs.in_own_process("docstrings", *modules, folder=tmp_path)
    assert not any(found.values()), "".join(found.values())
