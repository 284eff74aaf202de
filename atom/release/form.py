"""What a person has to say about a release: ``release.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atom.errors import UserError, nearest
from atom.io import yaml_data
from atom.io.files import read_text


class Form(BaseModel):
    """The words of a person. An empty one is listed as left to say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", description="the name of the model")
    licence: str = Field(default="", description="SPDX identifier of the licence of the weights")
    data_licence: str = Field(
        default="", description="SPDX identifier of the licence of the data, if it is released"
    )
    authors: list[str] = Field(default=[], description="who made it")
    contact: str = Field(default="", description="where to ask")
    description: str = Field(default="", description="what it is, in a paragraph")
    intended_use: str = Field(default="", description="what it is for")
    limitations: str = Field(default="", description="what it cannot do, and its risks")
    languages: list[str] = Field(default=[], description="ISO 639 codes of the text")
    report: str = Field(default="", description="address or file of the technical report")
    paper: str = Field(default="", description="address of the research paper")
    data_description: str = Field(
        default="", description="where the data is from, how it was chosen and cleaned"
    )
    data_access: str = Field(default="", description="where others get the data")
    personal_data: str = Field(default="", description="personal data in it, and what was done")
    opt_out: str = Field(default="", description="how wishes not to be trained on were respected")
    can_be_rebuilt: bool | None = Field(
        default=None,
        description="whether a skilled person can build an equivalent system from what is here",
    )

    def left(self) -> list[str]:
        """Return the names of the fields that nothing was said in."""
        return [name for name in type(self).model_fields if getattr(self, name) in ("", [], None)]

    def text(self) -> str:
        """Return the form as YAML, with what each field is for."""
        lines = []
        for name, field in type(self).model_fields.items():
            value = yaml.safe_dump({name: getattr(self, name)}, allow_unicode=True, width=1000)
            lines.append(f"# {field.description}\n{value}")
        return "\n".join(lines)


def read(path: Path) -> Form:
    """Read a form.

    Raises:
        UserError: it cannot be read, or has an unknown field or a value of another type.
    """
    try:
        text = read_text(path, most=yaml_data.BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the form {path} cannot be read: {error}") from None
    content: Any = yaml_data.load(text, str(path)) or {}
    if not isinstance(content, dict):
        raise UserError(f"the form {path} holds no fields", valid=", ".join(Form.model_fields))
    for name in content:
        if name not in Form.model_fields:
            raise UserError(
                f"{path}: there is no field {name}; {nearest(str(name), Form.model_fields)}"
            )
    try:
        return Form.model_validate(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
