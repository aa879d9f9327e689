"""Tables of predictions: what is written is read again, by the names of columns; tables are matched by names."""

import pytest
import torch

from hifuse_timm.predictions import Predictions, align, read_predictions, write_predictions

CLASSES = ["nevus", 'p_a, "b"', "Übergang"]


def make(files=("t/1.png", "t/2.png", "t/3.png"), targets=(0, 2, 1), groups=("A", "B", "A"), seed=0):
    probs = torch.rand(len(files), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(1)
    targets = None if targets is None else torch.tensor(targets)
    return Predictions(list(files), list(CLASSES), probs, targets, None if groups is None else list(groups))


def same(found: Predictions, expected: Predictions) -> bool:
    return (
        (found.files, found.classes, found.groups) == (expected.files, expected.classes, expected.groups)
        and torch.allclose(found.probs, expected.probs, rtol=0, atol=1e-8)
        and (found.targets is None) == (expected.targets is None)
        and (found.targets is None or torch.equal(found.targets, expected.targets))
    )


@pytest.mark.parametrize("known", [dict(), dict(groups=None), dict(targets=None), dict(targets=None, groups=None)])
def test_what_is_written_is_read_again(known, tmp_path):
    predictions = make(**known)
    write_predictions(tmp_path / "p.csv", predictions)
    assert same(read_predictions(tmp_path / "p.csv"), predictions)


def test_columns_are_found_by_name(tmp_path):
    (tmp_path / "p.csv").write_text(
        "\ufeffp_b,note,group,error,p_a,class,predicted,path\n0.25,x,7,,0.75,b,?,1.png\n,x,8,damaged,,b,,2.png\n"
    )
    read = read_predictions(tmp_path / "p.csv")
    assert (read.files, read.classes, read.groups) == (["1.png"], ["b", "a"], ["7"])
    assert read.probs.tolist() == [[0.25, 0.75]] and read.targets.tolist() == [0]


def test_images_that_could_not_be_read_are_left_out_with_a_word(tmp_path, caplog):
    (tmp_path / "p.csv").write_text("path,predicted,p_a,p_b,error\n1.png,a,0.75,0.25,\n2.png,,,,damaged\n")
    assert read_predictions(tmp_path / "p.csv").files == ["1.png"]
    assert "1 images could not be read: left out, 2.png" in caplog.text


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "have no images"),
        (
            "file,p_a\n1.png,1\n",
            "have the columns file, p_a, expected file or path, and p_CLASS for each of two classes or more",
        ),
        ("name,p_a,p_b\n1.png,1,0\n", "have the columns name, p_a, p_b, expected file or path"),
        ("file,p_a,p_a\n1.png,1,0\n", "have the columns p_a more than once"),
        ("file,p_a,p_b\n", "have no images"),
        ("file,p_a,p_b\n1.png,1\n", "have 2 cells in row 1, expected 3"),
        ("file,p_a,p_b\n1.png,1,0\n1.png,1,0\n", "have 1.png more than once"),
        ("file,p_a,p_b\n1.png,1,x\n", "have 'x' for 1.png in the column p_b, expected a probability from 0 to 1"),
        ("file,p_a,p_b\n1.png,1,nan\n", "have 'nan' for 1.png in the column p_b"),
        ("file,p_a,p_b\n1.png,1.5,-0.5\n", "have '1.5' for 1.png in the column p_a"),
        ("file,p_a,p_b\n1.png,0.5,0.4\n", "have probabilities for 1.png that add up to 0.9, expected 1"),
        ("file,class,p_a,p_b\n1.png,c,1,0\n", "name the true class 'c' for 1.png, expected one of those with a column"),
        ("file,group,p_a,p_b\n1.png,,1,0\n", "name no group for 1.png"),
        ("file,p_a,p_b\n\xff,1,0\n", "are no CSV in UTF-8"),
    ],
)
def test_table_that_is_none_is_one_error(text, words, tmp_path):
    (tmp_path / "p.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as error:
        read_predictions(tmp_path / "p.csv")
    assert str(error.value).startswith(f"predictions {tmp_path / 'p.csv'} {words.split()[0]}")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_tables_are_matched_by_the_names_of_images_and_classes():
    first = make()
    order, classes = [2, 0, 1], [1, 2, 0]
    other = Predictions(
        [f"/data/own/{first.files[i]}" for i in order],
        [CLASSES[k] for k in classes],
        make(seed=1).probs[order][:, classes],
    )
    expected = make(seed=1)
    for tables in ([first, other], [other, first]):
        aligned = align(tables, ["A.csv", "B.csv"])
        assert all(table.files == tables[0].files and table.classes == tables[0].classes for table in aligned)
        found = align([first, aligned[tables.index(other)]], ["A.csv", "B.csv"])[1]
        assert same(found, expected)
        assert aligned[0].groups == aligned[1].groups and torch.equal(aligned[0].targets, aligned[1].targets)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(files=("t/1.png", "t/2.png", "t/4.png")), "B.csv has 3 images, A.csv has 3, t/3.png among them, which B"),
        (
            dict(files=("data/t/1.png", "data/t/2.png"), targets=(0, 2), groups=("A", "B")),
            "B.csv has 2 images, A.csv has 3, t/3.png among them",
        ),
        (dict(files=("t/1.png", "x/t/1.png", "t/3.png")), "t/2.png among them, which B.csv lacks"),
        (dict(targets=(0, 2, 2)), 't/3.png is of the class Übergang in B.csv, and of p_a, "b" in A.csv'),
        (dict(groups=("A", "B", "C")), "t/3.png is of the group C in B.csv, and of A in A.csv"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(change, words):
    with pytest.raises(ValueError) as error:
        align([make(), make(**change)], ["A.csv", "B.csv"])
    assert words in str(error.value)
    renamed = Predictions(make().files, ["nevus", "melanoma", "Übergang"], make().probs)
    with pytest.raises(ValueError, match="B.csv has the classes nevus, melanoma, Übergang, A.csv has nevus, p_a, "):
        align([make(), renamed], ["A.csv", "B.csv"])
