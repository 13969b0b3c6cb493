"""Lists of classes are matched by name, or told to differ with both of them."""

from __future__ import annotations

import pytest

from attention_transfer.class_names import Classes, in_words, match
from attention_transfer.errors import DataError

ANIMALS = ("ant", "bee", "cat", "dog")


def teacher(*names, **about):
    return Classes("the teacher", names or None, **about)


def student(*names, **about):
    return Classes("the student", names or None, **about)


def test_the_same_list_is_taken_as_it_is_without_a_word():
    found = match(teacher(*ANIMALS), student(*ANIMALS))
    assert (found.positions, found.note) == (None, None)


def test_another_order_is_mapped_and_said():
    found = match(teacher(*ANIMALS), student("dog", "ant", "cat", "bee"))
    assert found.positions == (3, 0, 2, 1)
    assert found.note == "the student and the teacher number the same classes differently: they are matched by name"


@pytest.mark.parametrize("names", [("dog", "bee"), ("ant", "bee")])
def test_some_of_the_classes_in_any_order_are_mapped_and_said(names):
    found = match(teacher(*ANIMALS), student(*names))
    assert [ANIMALS[position] for position in found.positions] == list(names)
    assert found.note == "the student has 2 of the 4 classes of the teacher: they are matched by name"


def test_a_class_that_is_not_there_is_an_error_with_both_lists_and_the_nearest_name():
    with pytest.raises(DataError) as raised:
        match(teacher(*ANIMALS), student("ant", "Bees", "wasp"))
    assert str(raised.value) == (
        "the student has the classes ant, Bees, wasp, and the teacher ant, bee, cat, dog, which has no 'Bees' "
        "(but 'bee'), 'wasp'"
    )


def test_long_lists_are_cut_short_in_the_error():
    many = tuple(f"class {number}" for number in range(1000))
    with pytest.raises(DataError) as raised:
        match(teacher(*many), student(*(name.replace("class", "kind") for name in many)))
    assert len(str(raised.value)) < 800
    assert "(1000 in all)" in str(raised.value)
    assert "and 995 more" in str(raised.value)


def test_a_name_that_is_there_twice_says_nothing():
    with pytest.raises(DataError, match="a name is there twice"):
        match(teacher("crane", "crane", "bee"), student("bee", "crane"))
    with pytest.raises(DataError, match="a name is there twice"):
        match(teacher(*ANIMALS), student("bee", "bee"))
    assert match(teacher("crane", "crane", "bee"), student("bee")).positions == (2,)


def test_accents_that_macos_takes_apart_are_the_same_name():
    assert match(teacher("ant", "cafe\u0301"), student("caf\u00e9", "ant")).positions == (1, 0)


def test_other_names_for_the_same_classes_are_looked_through():
    imagenet = teacher("tench", "goldfish", "hen", synonyms=(("n01", "n02", "n03"),))
    assert match(imagenet, student("n03", "n01")).positions == (2, 0)
    assert match(imagenet, student("hen", "tench")).positions == (2, 0)
    with pytest.raises(DataError):
        match(imagenet, student("hen", "n01"))


def test_without_names_equal_numbers_are_taken_in_their_order_which_is_said():
    found = match(teacher(count=4), student(*ANIMALS))
    assert found.positions is None
    assert found.note == (
        "the teacher does not name its classes: class i of the teacher is taken for class i of the student"
    )
    assert match(teacher(*ANIMALS), student(count=4)).note.startswith("the student does not name its classes")
    assert match(teacher(count=4), student(count=4)).note.startswith("neither the teacher nor the student names")
    assert match(teacher(), student(*ANIMALS)).positions is None


@pytest.mark.parametrize("owner", ["teacher", "student"])
def test_without_names_unequal_numbers_are_an_error_with_the_list_that_there_is(owner):
    theirs, ours = teacher(*ANIMALS), student(count=5)
    if owner == "teacher":
        theirs, ours = teacher(count=5), student(*ANIMALS)
    with pytest.raises(DataError, match=r"ant, bee, cat, dog"):
        match(theirs, ours)


def test_folders_that_are_really_called_by_numbers_are_matched_by_name():
    digits = teacher(*"0123456789")
    assert match(digits, student("7", "1")).positions == (7, 1)
    with pytest.raises(DataError):
        match(digits, student(*ANIMALS))


def test_ten_names_are_told_whole():
    assert in_words("abcdefghij") == "a, b, c, d, e, f, g, h, i, j"
    assert in_words("abcdefghijk").endswith("j, ... (11 in all)")
