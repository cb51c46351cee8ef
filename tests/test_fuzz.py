"""The short form of the fuzz run: some mutants of every form, in this process; ``tests/fuzz.py`` makes many more."""

import fuzz
import pytest
from damage import STRUCTURES
from fuzz_inputs import make_inputs

MUTANTS = 3  # per form


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MEIDBENCH_HOME", str(folder / "home"))
        make_inputs(folder, fuzz.TRAIN)
    return folder


@pytest.mark.parametrize("name", fuzz.FORMS)
def test_a_damaged_input_is_refused_or_gives_what_it_says(name, inputs, monkeypatch):
    """No traceback; with a checksum, damaged bytes give no other number."""
    monkeypatch.chdir(inputs)
    monkeypatch.setattr("meidbench.files.HDF5_SECONDS", 5.0)
    sound = {}
    for number in range(MUTANTS):
        kind, outcome, message = fuzz.judge(name, number, 0, sound)
        assert outcome in ("refused", "same", "other"), (number, message)
        assert not (outcome == "other" and kind == "bytes" and fuzz.FORMS[name].checksum), number


def test_a_mutant_can_be_made_again_and_every_structure_is_damaged(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    kinds = set()
    for form in fuzz.FORMS.values():
        raw = fuzz.find_file(form).read_bytes()
        first, again = (fuzz.damage(fuzz.random.Random(f"7 {form.file}"), raw, form) for _ in range(2))
        assert first == again and first[1] != raw
        kinds |= {fuzz.damage(fuzz.random.Random(number), raw, form)[0] for number in range(6)}
    assert kinds == {"bytes", *STRUCTURES}
