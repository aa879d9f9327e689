"""What a source holds: images with their classes, and what was found wrong with them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..datasets import Dataset
from .archives import Finding, Part, SourceFile

__all__ = ["OWN_COLUMNS", "SPLITS", "SUBJECT_COLUMN", "Inventory", "Sample"]

SPLITS = ("train", "val", "test")

# Of splits.csv; the last one where images of one subject, as a patient, are in several groups.
OWN_COLUMNS = ("file", "class", "split", "group", "checksum")
SUBJECT_COLUMN = "subject"


@dataclass
class Sample:
    """An image with its class.

    Attributes:
        file: Where its content comes from.
        label: Its class, as the folder is named.
        group: What stays in one split with it: all of its patient, or itself.
        split: Its split where that is given, else None.
        subject: The patient or lesion that it shows, whether or not that is its group; None if it is not known.
        name: Name of the file to write, by default that of its source.
        checksum: SHA-256 of the file.
        content: SHA-256 of its size and its RGB values.
        kept: What a list says of it in the columns that are kept.
    """

    file: SourceFile
    label: str
    group: str
    split: str | None = None
    subject: str | None = None
    name: str = ""
    checksum: str = ""
    content: str = ""
    kept: tuple[str, ...] = ()

    def __post_init__(self):
        self.name = self.name or self.file.path.name

    def __str__(self) -> str:
        return f"{self.label}/{self.name}"


@dataclass
class Inventory:
    """What a source holds.

    Attributes:
        dataset: The dataset, as facts.
        name: Its short name, as of `DATASETS`.
        samples: Images whose class is known.
        findings: What is wrong or notable.
        parts: Names of the folders and archives read.
        counts: Numbers of images as published: by class, by split, and by both, as `test/CLASS`.
        unit: What the subjects of the samples are, as `patient`; None where the source names none.
        columns: Columns read from a list, by what they hold.
        kept: Columns of a list that go into splits.csv as they are.
        is_official: Whether the provider's split is kept to the image, whatever is in it twice.
        dicom_subjects: Whether DICOM files say themselves whom they show, and are grouped by it.
    """

    dataset: Dataset
    name: str
    samples: list[Sample] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unit: str | None = None
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    is_official: bool = False
    dicom_subjects: bool = False

    def report(self, kind: str, message: str, files: Iterable[str], error: bool = True) -> None:
        """Add a finding about these files, if there are any."""
        if files := tuple(sorted(files)):
            self.findings.append(Finding(kind, message, files, error))

    def add(self, *parts: Part) -> None:
        """Note parts that are read, with their findings."""
        for part in parts:
            self.parts.append(part.location.name)
            self.findings += part.findings
