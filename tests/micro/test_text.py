from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from prismlab.errors import DataError
from prismlab.micro import text


@pytest.fixture
def fresh() -> object:
    """Nothing remembered before or after."""
    caches = (text._modules, text.web_documents, text.code_documents, text.chat_documents, text.text_hash)
    for cache in caches:
        cache.cache_clear()
    yield None
    for cache in caches:
        cache.cache_clear()


def test_documents_are_real_text_of_sensible_size() -> None:
    web, code, chat = text.web_documents(), text.code_documents(), text.chat_documents()
    assert 2_000_000 < sum(map(len, web)) + sum(map(len, code)) < 8_000_000
    assert len(chat) > 500
    for documents in (web, code):
        assert all(text.FEWEST_CHARS <= len(document) <= text.LONGEST_PIECE for document in documents)
        assert len(set(documents)) == len(documents)
    assert any("assert" in document and "AssertionError" in document for document in web)


def test_code_is_the_source_line_for_line_without_docstrings() -> None:
    source = (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text("utf-8")
    module = text._read_module("textwrap", Path(sysconfig.get_path("stdlib")) / "textwrap.py")
    lines = {line.rstrip() for line in source.split("\n")}
    written = "\n\n".join(module.code)
    assert {line for line in written.split("\n") if line} <= lines
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (doc := ast.get_docstring(node)):
            assert doc.split("\n")[0] not in written
            assert f"{node.name}" in written


def test_no_passage_of_one_kind_is_in_another() -> None:
    web = "\n".join(text.web_documents())
    said = [chat.split("\nAssistant: ", 1)[1] for chat in text.chat_documents()]
    long = [answer for answer in said if len(answer) > 60]
    joined = " ".join(web.split())
    # A module may quote a function's docstring; it is the exception.
    assert sum(answer in joined for answer in long) / len(long) < 0.05
    code = " ".join("\n".join(text.code_documents()).split())
    assert sum(answer in code for answer in long) / len(long) < 0.05


def test_chats_answer_with_the_docstring() -> None:
    chats = {chat.split("\n")[0]: chat.split("\n", 1)[1] for chat in text.chat_documents()}
    import textwrap

    assert textwrap.shorten.__doc__ is not None
    first = " ".join(textwrap.shorten.__doc__.split("\n\n")[0].split())
    assert chats["User: What does textwrap.shorten do?"] == f"Assistant: {first}"


def test_same_text_and_hash_in_another_process() -> None:
    program = "from prismlab.micro.text import text_hash; print(text_hash())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == text.text_hash()


def test_loading_is_fast_and_imports_no_torch(fresh: None) -> None:
    started = time.process_time()
    text.text_hash()
    assert time.process_time() - started < 15
    program = "import sys, prismlab.micro.text as t; t.web_documents(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_hash_covers_every_kind(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = text.text_hash()
    for name in ("web_documents", "code_documents", "chat_documents"):
        with monkeypatch.context() as patch:
            whole = getattr(text, name)()
            patch.setattr(text, name, lambda whole=whole: (*whole[:-1], whole[-1] + "!"))
            text.text_hash.cache_clear()
            assert text.text_hash() != before


def test_a_python_without_topics_is_named(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="pydoc_data"):
        text.web_documents()


def test_a_python_without_source_is_named(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ast.py").write_text("x = 1\n")
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="holds only 6 bytes"):
        text.code_documents()


def test_long_pieces_are_cut_at_line_breaks_and_nothing_is_lost() -> None:
    piece = "".join(f"line {at} {'x' * 60}\n" for at in range(100))
    parts = list(text._cut(piece))
    assert "".join(parts) == piece
    assert all(len(part) <= text.LONGEST_PIECE and part.endswith("\n") for part in parts)
    assert list(text._cut("y" * 4000)) == ["y" * 1500, "y" * 1500, "y" * 1000]
