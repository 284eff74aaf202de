"""Code of plugins that open other components: in a circle, in fields of any shape, in a wrapper."""

# Opens itself: with the same parameters, or with others each time.
LOOP = {
    "__init__.py": """
from atom.plugin import Dataset, hookimpl

@hookimpl
def atom_datasets():
    for name in ("loop", "spiral"):
        yield Dataset(
            name=name,
            summary="opens itself",
            config="loop.code:Config",
            source=f"loop.code:{name}",
        )
""",
    "code.py": """
from pydantic import BaseModel, Field
from atom.plugin import Dataset, Launcher
from atom.plugin.parameters import Component

class Config(BaseModel):
    turns: int = Field(default=0, description="how deep")
    submit: Component[Launcher] | None = Field(default=None, description="where to")

def loop(config, context):
    return context.open(Dataset, "loop", key="dataset.again").call("source")

def spiral(config, context):
    below = {"name": "spiral", "turns": config.turns + 1}
    return context.open(Dataset, below, key="dataset.again").call("source")
""",
    "conf/dataset/loop.yaml": "name: loop\n",
    "conf/dataset/spiral.yaml": "name: spiral\n",
    "conf/dataset/given.yaml": "defaults: [/dataset@inner: stdlib]\nname: loop\n",
}

# Components in every shape of field, and plugins with mistakes in them.
SHAPES = {
    "__init__.py": """
from atom.plugin import Dataset, hookimpl

@hookimpl
def atom_datasets():
    for name in ("shapes", "named", "exits"):
        yield Dataset(
            name=name, summary=name, config=f"shapes.config:{name.title()}",
            source="shapes.config:source",
        )
    yield Dataset(name="ends", summary="ends", source="shapes.ends:Ends")
    # Nobody chooses it, so it disturbs nobody.
    config, source = "shapes.broken:Config", "shapes.config:source"
    yield Dataset(name="broken", summary="broken", config=config, source=source)
""",
    "ends.py": """
import sys
from atom.plugin import Document

class Ends:
    def __init__(self, config):
        self.begun = False

    def check(self):
        return "ends"

    def lane(self, lane, lanes, *, seed, epoch, start=0):
        sys.exit(0)
        yield Document(text="", id="0")
""",
    "broken.py": "raise RuntimeError('half installed')",
    "config.py": """
import dataclasses
import sys
from pydantic import BaseModel, ConfigDict, Field, model_validator
from atom.plugin import Dataset, Parallelism
from atom.plugin.parameters import Component

class Weighted(Component[Dataset]):
    weight: float = Field(default=1.0, description="a number beside the parameters")
    path: str = Field(default="x", description="a parameter of local, too")

class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(default=1, description="a number")

@dataclasses.dataclass
class Held:
    data: Component[Dataset]

class Shapes(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    held: Held | None = Field(default=None, description="in a dataclass")
    every: frozenset[Component[Dataset]] = Field(default=frozenset(), description="in a set")
    other: Component[Dataset] | None = Field(default=None, validation_alias="from", description="x")
    layout: Component[Parallelism] | None = Field(default=None, description="a strategy")
    any: Component | None = Field(default=None, description="of no kind")
    weighted: Weighted | None = Field(default=None, description="with keys of its own")
    inner: Inner = Field(default=Inner(), description="a section")
    shares: dict[str, list[float]] = Field(default={}, description="numbers")

class Named(BaseModel):
    name: str = Field(default="x", description="the section has this key itself")

class Exits(BaseModel):
    @model_validator(mode="after")
    def _ends(self):
        sys.exit(0)

def source(config, context):
    raise NotImplementedError
""",
    "conf/dataset/shapes.yaml": "name: shapes\n",
}

# A launcher that opens another.
WRAPPER = {
    "__init__.py": """
from atom.plugin import Launcher, hookimpl

@hookimpl
def atom_launchers():
    yield Launcher(
        name="wrapper", summary="another launcher, twice", config="wrapper.code:Config",
        plan="wrapper.code:plan",
    )
""",
    "code.py": """
import dataclasses
from pydantic import BaseModel, ConfigDict, Field
from atom.errors import UserError
from atom.plugin import Launcher
from atom.plugin.parameters import Component

class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    inner: Component[Launcher] = Field(description="what submits")

def plan(config, context):
    opened = context.open(Launcher, config.inner)
    assert opened.key == "launcher.inner" and context.key == "launcher"
    submission = opened.call("plan", context)
    return dataclasses.replace(submission, advice=f"wrapped: {submission.advice}")
""",
    "conf/launcher/wrapper.yaml": "name: wrapper\ninner: {name: slurm}\n",
}
