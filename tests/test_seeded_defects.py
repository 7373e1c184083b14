"""The list of seeded defects still fits the code, so that the script of that name means something."""

from __future__ import annotations

import pytest
from changed_tree import ROOT
from seeded_defects import Defect, load

DEFECTS = load()


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_a_defect_fits_the_code_and_its_tests_exist(defect: Defect) -> None:
    assert defect.fits(), f"{defect.file} does not hold {defect.old!r} exactly once"
    assert defect.old != defect.new
    assert defect.tests
    for test in defect.tests.split():
        path, _, function = test.partition("::")
        assert (ROOT / path).is_file()
        assert not function or f"def {function}(" in (ROOT / path).read_text()


def test_names_tell_defects_apart() -> None:
    names = [defect.name for defect in DEFECTS]
    assert len(names) == len(set(names)) >= 72
