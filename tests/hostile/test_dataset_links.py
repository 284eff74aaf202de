"""A link in a stranger's folder of data does not bring a private file into a training set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atom.errors import UserError
from atom_datasets import huggingface, local
from atom_datasets.config import HuggingFace, Local

SECRET = "swordfish " * 9


def put(path: Path, text: str = SECRET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


PRIVATE = {
    "a key": ("id.txt", ".ssh/id_rsa", "is hidden (.ssh)"),
    "a key elsewhere": ("id.txt", "keys/id_rsa", "has not the suffix of the link"),
    "no suffix at all": ("passwd", "etc/passwd", "has no suffix"),
    "credentials": ("a.txt", ".config/app/credentials.txt", "is hidden (.config)"),
    "history": ("a.txt", ".bash_history", "is hidden (.bash_history)"),
    "another kind": ("a.txt", "letters/taxes.docx", "has not the suffix of the link"),
    "a folder": ("texts", ".ssh", "is hidden (.ssh)"),
    "not Hugging Face's cache": ("a.txt", "blobs/secret", "has not the suffix of the link"),
}


@pytest.mark.parametrize("case", PRIVATE)
@pytest.mark.parametrize("given", ["folder", "pattern"])
def test_a_link_to_a_private_file(case: str, given: str, tmp_path: Path, watched: Any) -> None:
    name, target, reason = PRIVATE[case]
    data, home = tmp_path / "data", tmp_path / "home"
    put(data / "own.txt", "hello")
    put(home / target / "key.txt" if case == "a folder" else home / target)
    (data / name).symlink_to(home / target)
    path = str(data) if given == "folder" else f"{data}/**/*"
    if given == "pattern" and case == "a folder":
        path = f"{data}/*/*"
    run = tmp_path / "run"
    watched.private.add("home")
    result = watched(
        "train", "tokenizer=bytes", "device=cpu", "dataset=local", "dataset.format=text",
        f"dataset.path={path}", f"run.dir={run}",
    )  # fmt: skip
    assert result.returncode == 2, result.stdout
    [said] = result.stderr.splitlines()
    assert f"{data / name}" in said
    assert f"leads out of its folder by a link, to {home / target}" in said
    assert reason in said
    assert "dataset.links=follow if that is your data" in said
    assert "swordfish" not in said
    assert not run.exists()


@pytest.mark.parametrize("kind", ["local", "huggingface"])
def test_which_links_may_lead_out(kind: str, tmp_path: Path) -> None:
    """The number of the files is told; what a user allows is read, and what they refuse is not."""

    def made(path: Path, **also: str) -> local.LocalSource | huggingface.HuggingFaceSource:
        values = {"path": str(path), **also}
        if kind == "local":
            return local.source(Local.model_validate(values))
        return huggingface.source(HuggingFace.model_validate(values))

    data = tmp_path / "data"
    put(data / "own.txt", "hello")
    (data / "inside.txt").symlink_to("own.txt")
    (data / "other.txt").symlink_to(put(tmp_path / "texts/other.txt"))
    source = made(data)
    source.check()
    told = "files elsewhere, read through links: 1 (other.txt)"
    assert told in source.contents().left_out
    with pytest.raises(UserError, match="leads out of its folder") as refused:
        made(data, links="refuse").check()
    assert refused.value.key == "dataset.links"

    private = tmp_path / "private"
    put(private / "own.txt", "hello")
    (private / "key.txt").symlink_to(put(tmp_path / ".ssh/id_rsa", "another"))
    with pytest.raises(UserError, match=r"is hidden \(\.ssh\)"):
        made(private).check()
    made(private, links="follow").check()


def test_hugging_faces_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    """Within it links are its own; from elsewhere they are data, though a blob has no suffix."""
    cache = tmp_path / ".cache/datasets--owner--name"
    blob = put(cache / "blobs/0123abcd")
    snapshot = cache / "snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "a.txt").symlink_to("../../blobs/0123abcd")
    source = local.source(Local(path=str(snapshot)))
    source.check()
    assert source.contents().left_out == ()
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").symlink_to(snapshot / "a.txt")
    source = local.source(Local(path=str(data)))
    source.check()
    assert source.contents().left_out == ("files elsewhere, read through links: 1 (a.txt)",)
    assert blob.read_text() == SECRET
