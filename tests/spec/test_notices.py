"""Notices: every code has a meaning and is used, each is taken and logged once, and strict ones raise."""

from __future__ import annotations

from pathlib import Path

import pytest

from openautoglm.errors import DowngradeError
from openautoglm.spec.notices import NOTICE_MEANINGS, NoticeCode, Notices

PACKAGE = Path(__file__).parents[2] / "src" / "openautoglm"


def test_every_code_has_a_meaning_and_a_place_that_gives_it():
    assert set(NOTICE_MEANINGS) == set(NoticeCode)
    sources = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "notices.py"]
    unused = [code for code in NoticeCode if not any(f"NoticeCode.{code.name}" in source for source in sources)]
    assert unused == []


def test_the_documentation_lists_every_code():
    text = (PACKAGE.parents[1] / "docs" / "memory.md").read_text()
    missing = [code.value for code in NoticeCode if f"`{code.value}`" not in text]
    assert missing == []


def test_a_notice_is_taken_and_logged_once(caplog: pytest.LogCaptureFixture):
    notices = Notices()
    notices.add(NoticeCode.HUGE_PAGES_OFF, "small pages")
    notices.add(NoticeCode.HUGE_PAGES_OFF, "small pages")
    notices.add(NoticeCode.HUGE_PAGES_OFF, "others")
    assert [notice.message for notice in notices.taken()] == ["small pages", "others"]
    assert [record.getMessage() for record in caplog.records] == [
        "huge_pages_off: small pages",
        "huge_pages_off: others",
    ]
    assert notices.taken()[0].as_dict() == {"code": "huge_pages_off", "message": "small pages"}


def test_a_strict_one_is_an_error_with_its_code():
    notices = Notices(strict=True)
    with pytest.raises(DowngradeError, match=r"small pages.*huge_pages_off.*--strict") as raised:
        notices.add(NoticeCode.HUGE_PAGES_OFF, "small pages")
    assert raised.value.code == "huge_pages_off"
    assert notices.taken() == ()
