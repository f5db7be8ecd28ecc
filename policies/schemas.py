"""The shapes of files that people write, as pydantic models. Imported only when there is such a file to judge.

What passes here is turned into frozen records at once (settings.py, rules/load.py); nothing else knows pydantic.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

BRANCH = r"^[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){0,7}$"
Number = Annotated[float, Field(allow_inf_nan=False)]


class Table(BaseModel):
    """A table of which every key is known."""

    model_config = ConfigDict(extra="forbid")


# --- mlc.toml --------------------------------------------------------------------------------------------


class RegistryTable(Table):
    """`[registry]`"""

    default_branch: str = Field(default="main", pattern=BRANCH)
    link: Literal["auto", "copy", "hardlink", "reflink"] = "auto"
    cache_bytes: int = Field(default=1 << 30, ge=0)


class EvalTable(Table):
    """`[eval]`"""

    suites: list[str] = []
    seeds: list[int] = Field(default=[0], min_length=1)
    batch_tokens: int = Field(default=8192, ge=1)


class EngineTable(Table):
    """`[engine]`, in seconds"""

    start: Number = Field(default=600.0, gt=0)
    queue: Number = Field(default=86_400.0, gt=0)
    silence: Number = Field(default=300.0, gt=0)


class PolicyTable(Table):
    """`[policy]`"""

    files: list[str] | None = None
    protected: list[str] = []


class RemoteTable(Table):
    """`[remote.NAME]`"""

    url: str
    sign: bool = False


class SettingsFile(Table):
    """The whole of mlc.toml."""

    registry: RegistryTable = Field(default_factory=RegistryTable)
    eval: EvalTable = Field(default_factory=EvalTable)
    engine: EngineTable = Field(default_factory=EngineTable)
    policy: PolicyTable = Field(default_factory=PolicyTable)
    remote: dict[str, RemoteTable] = {}
    limits: dict[str, int] = {}


# --- policies/*.toml -------------------------------------------------------------------------------------


class RuleTable(Table):
    """One `[[rule]]`. Exactly one of max, min, ratio_max, drop_max says what is allowed; sql rules say nothing."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="the name that outcomes and waivers use")
    metric: str | None = Field(None, description="flips.*, suite.<name>.<metric>, check.*, delta.* or drift.*")
    sql: str | None = Field(None, description="a read-only query that must return no row")
    suite: str | list[str] = Field("*", description="glob of suite names; a list may hold exclusions such as !blimp")
    slice: str | None = Field(None, description="glob of slice names: each slice is judged by itself")
    against: str = Field("parent", description="parent, @alias, or a rev")
    max: Number | None = Field(None, description="the value must not be over this")
    min: Number | None = Field(None, description="the value must not be under this")
    ratio_max: Number | None = Field(None, gt=0, description="value / value before must not be over this")
    drop_max: Number | None = Field(None, ge=0, description="value before - value must not be over this")
    test: Literal["mcnemar", "binomial"] | None = Field(None, description="refuse a drop only when chance does not explain it")
    alpha: Number = Field(0.05, gt=0, lt=1, description="how often the rule may refuse by chance, over all it judges")
    when: str | None = Field(None, description="a condition such as: op in ('update', 'merge')")
    action: Literal["block", "warn"] = "block"
    floor: Literal["twin"] | None = Field(None, description="flips.*: judge what is above the flips between two seeds of the recipe")
    detect: Number | None = Field(None, gt=0, lt=1, description="mcnemar: say how many examples it takes to find a fall this large")
    power: Number = Field(0.95, gt=0, lt=1, description="the chance with which `detect` is to be found")
    min_examples: int = Field(0, ge=0, description="with fewer, the rule does not decide; on_few does")
    on_few: Literal["block", "warn", "pass"] = "warn"
    note: str | None = Field(None, description="why the rule is there; shown by `policy explain`")


class PolicyFile(Table):
    """The whole of a policy file."""

    rule: list[RuleTable] = []
