"""Words to typed configs, by Hydra; its errors reworded to one line that names the key.

Hydra only composes here: the work starts after it has returned, so that its error handling,
output folders and logging never touch it.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from lsexp import studies
from lsexp.config import (
    LAUNCHERS,
    LOSSES,
    MODELS,
    TABLES,
    Budget,
    CustomConfig,
    SlurmConfig,
    SweepConfig,
    TrainConfig,
    allowed,
    walk,
)
from lsexp.errors import UserError, unknown
from lsexp.text import user_path

GROUPS = ("recipe", "budget", "data", "model", "loss")
SWEEP_GROUPS = ("launcher",)
"""Those of a sweep alone."""
LAUNCHER_BEGINS = "defaults: [/launcher_slurm_schema@_here_, _self_]"
"""How a user's file for a cluster begins."""
HELP = "lsexp train --help"
FLAGS = ("--help", "--dry-run", "--multirun", "--cfg", "--resolve", "--config-dir")
PATHS = ("data.path", "data.url", "data_dir", "runs_dir", "loss.teacher")
TAKES_VALUE = ("-c", "--cfg", "-cd", "--config-dir")
VALUE_RULES = {
    "converted to Float": "must be a number",
    "converted to Integer": "must be a whole number",
    "is not a valid bool": "must be true or false",
    "is not Optional": "cannot be null",
    "is not a ListConfig": "must be a list, e.g. [1,2]",
    "Cannot assign int to Dict": "must be a table, e.g. {head: 0.1}",
    "Cannot assign float to Dict": "must be a table, e.g. {head: 0.1}",
    "Cannot assign str to Dict": "must be a table, e.g. {head: 0.1}",
    "Incompatible value 'None'": "cannot hold null",
    "NoneType is not a subclass of": "cannot hold null",
    "Cannot merge DictConfig with ListConfig": "[...] is a list and {...} a table, not either",
    "Cannot convert 'list' to string": "must be a word, not a list",
    "Cannot convert 'dict' to string": "must be a word, not a table",
}
"""What OmegaConf says of a value, and what a person needs to know."""

SIGNS = {
    "${": "would refer to another key; write the value itself",
    "???": "stands for a value that must be given; write the value",
}
"""What OmegaConf takes for more than a value, and would report without the key."""

MOST_SEEDS = 10_000
MOST_BRACKETS = 50
"""In a value: no key nests, and Hydra's parser recurses."""
Chosen = dict[str, str]


def train_configs(words: list[str]) -> list[tuple[TrainConfig, Chosen]]:
    """The config that `lsexp train WORDS` means; several with -m, none with --cfg (it prints).

    Each comes with the names of recipe and budget that were chosen.

    Raises:
        UserError: unknown or malformed words, keys, groups or values.
    """
    flags, overrides = _check_words(words, _known(), HELP)
    found = []
    for config, choices in _hydra("train", flags, overrides):
        chosen = {"recipe": str(choices["recipe"]), "budget": str(choices["budget"])}
        _check_args(words, config, choices)
        found.append((config, chosen))
    if not found and "--cfg" not in flags:
        raise UserError(f"{' '.join(words)}: -m finds no value that a run could be trained with")
    return found


def _check_args(words: list[str], config: TrainConfig, choices: Any) -> None:
    """Names in a table are not checked by Hydra."""
    for word in words:
        if word.startswith("model.args") and not isinstance(config.model, CustomConfig):
            raise UserError(f"{word}: goes with model=custom, not model={choices['model']}")


def sweep_config(study: str, words: list[str]) -> tuple[SweepConfig, Chosen] | None:
    """The config that `lsexp sweep STUDY WORDS` means, its study's own keys in `.study`.

    `eps=0,0.1` and `seeds=5` (five seeds) or `seeds=0,3,7` are lists as people type them.
    None with --cfg, which prints.

    Raises:
        UserError: as `train_configs`, and for a key that the study owns.
    """
    module = studies.study(study, "lsexp sweep")
    help_command = f"lsexp sweep {study} --help"
    own = {item.name: item for item in fields(module.Config)}
    typed, named = [], {}
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if before in TAKES_VALUE:
            typed.append(word)
            continue
        if name in own and equals and "list[str]" in str(own[name].type):
            if name in named:
                raise UserError(f"{name}: is given twice")
            named[name] = _as_names(name, value)  # any characters: not for Hydra's grammar
            continue
        if word in ("-m", "--multirun"):
            raise UserError(f"{word}: a sweep trains lists by itself, e.g. eps=0,0.1 seeds=5")
        if name in module.OWNED:
            raise UserError(f"{word}: {study} sets it; type {module.OWNED[name]}")
        if name in own and equals:
            if own[name].type == "bool":
                _check_flag(name, value, help_command)
            value = _as_list(name, value) if "list" in str(own[name].type) else value
            word = f"study.{name}={value}"
        elif word == "members=auto":  # as people type it; a number or nothing to Hydra
            word = "members=null"
        elif name == "study" or name.startswith("study."):
            raise unknown(word, "key", _known(own), help_command)
        typed.append(word)
    known = [key for key in _known([f"study.{name}" for name in own]) if key not in module.OWNED]
    try:
        flags, overrides = _check_words(typed, known, help_command)
        found = _hydra(f"study/{study}", flags, overrides, module.Config)
    except UserError as error:
        text = re.sub(r"^study\.|(?<=did you mean )study\.", "", str(error))
        text = text.replace(HELP, help_command)
        if ": several values; " in text:
            word = text.partition(":")[0]
            varied = [key for key, item in own.items() if "list" in str(item.type)]
            lists = " and ".join(key for key in varied if key not in module.VIEW)
            text = f"{word}: several values; a sweep varies {lists} only"
            if word.partition("=")[0] in _keys_of("list"):
                text += f", brackets make a list: {word.replace('=', '=[', 1)}]"
        raise UserError(text) from error
    if not found:
        return None
    [(config, choices)] = found
    _check_args(words, config, choices)
    for name, names in named.items():
        setattr(config.study, name, names)
    return config, {"recipe": str(choices["recipe"]), "budget": str(choices["budget"])}


def _as_list(name: str, value: str) -> str:
    """`0,0.1` as `[0,0.1]`, and for seeds a single number as so many from 0."""
    if not value.isascii():  # other scripts' digits are numbers to Python, not to Hydra
        raise UserError(f"{name}={value}: must be numbers with commas between")
    items = [item.strip() for item in value.strip("[]").split(",")]
    if not items[-1]:  # `0,` is a list of one, `[]` of none
        del items[-1]
    for item in items:
        try:
            float(item)
        except ValueError:
            raise UserError(f"{name}={value}: must be numbers with commas between") from None
    if name == "seeds" and value.isdecimal():
        if not value.strip("0"):
            raise UserError(f"seeds={value}: is how many; seeds=0, is the one seed 0")
        # Python refuses to read a number of thousands of digits.
        if len(value) > 9 or int(value) > MOST_SEEDS:
            raise UserError(
                f"seeds={value}: is how many, at most {MOST_SEEDS}; seeds={value}, is the one seed "
                f"of that number"
            )
        items = [str(seed) for seed in range(int(value))]
    return f"[{','.join(items)}]"


def _as_names(name: str, value: str) -> list[str] | None:
    """`airplane,2` as a list of words."""
    if value == "null":
        return None
    if value[:1] == "[" and value[-1:] == "]":
        value = value[1:-1]
    items = [item.strip() for item in value.split(",")]
    if not all(items):
        raise UserError(f"{name}={value}: must be names with commas between")
    return items


def sweep_help(study: str) -> str:
    """The text of `lsexp sweep STUDY --help`."""
    module = studies.study(study, "lsexp sweep")
    recipes = ["mnist_mlp", "cifar10_alexnet"]
    if hasattr(module, "recipe_for"):
        recipes = [module.recipe_for(recipe) for recipe in ("mnist_mlp", "cifar10_resnet56")]
    lines = [
        f"lsexp sweep {study} [key=value ...]: {module.HELP}",
        f"lsexp plot {study} [key=value ...]: the same from what is trained; never trains",
        "",
        "A sweep trains what is not trained yet, as many runs at once as there are cores, then",
        "prints the table and draws the figure. Finished runs are skipped, interrupted ones go on.",
        "",
        f"  lsexp sweep {study}                                    the embedded digits",
        f"  lsexp sweep {study} recipe={recipes[0]} eps=0,0.1 seeds=10",
        f"  lsexp sweep {study} recipe={recipes[1]} --dry-run   what is to do, and how long",
        f"  lsexp plot {study} ...                                 the same words: no training",
        *(
            [f"  lsexp plot {study} logits=FILE.npz             anybody's logits: {module.FILE}"]
            if hasattr(module, "analyze_file")
            else []
        ),
        "",
        f"Keys of {study}:",
        *(_key_line(*found) for found in walk(module.Config())),
        "",
        "Of the sweep:",
        "  rows=RECIPE,RECIPE                  instead of recipe=: a row of the figure for each",
        *(_key_line(*found) for found in walk(SweepConfig()) if found[0] in ("workers", "members")),
        "  launcher=local                      on this machine; slurm: as jobs of a cluster",
        *(
            [f"  {f'{module.PARTNER}.KEY=VALUE':<34}  of the {module.PARTNER}s' training alone"]
            if hasattr(module, "partner")
            else []
        ),
        "  figure.format=png                   png, pdf, svg; several with commas",
        "  out_dir=FOLDER                      or LSEXP_OUT_DIR (default: out)",
        "",
        "Of launcher=slurm:",
        *(_key_line(*found) for found in walk(SlurmConfig(), "launcher.")),
        "  --detach                            do not wait for the jobs: the same command looks",
        "",
        f"Any key of `lsexp train` applies to every run{_but(module)}; `lsexp train --help` lists",
        "them.",
    ]
    return "\n".join(lines) + "\n"


def _but(module: Any) -> str:
    """What keys do not apply to, where a study trains two kinds of runs."""
    if not hasattr(module, "partner"):
        return ""
    return (
        f", but to {module.PARTNER}s of another\n"
        f"recipe only those of data, budget, folders and devices"
    )


def train_help() -> str:
    """The text of `lsexp train --help`."""
    lines = [
        "lsexp train [key=value ...]: train one run; prints its folder. A finished run is shown as",
        "it is, an interrupted one goes on.",
        "",
        "  lsexp train loss.eps=0.1                          the embedded digits, in seconds",
        "  lsexp train recipe=mnist_mlp budget=paper seed=1  the paper's MNIST network",
        "  lsexp train -m loss.eps=0,0.1 seed=0,1            one run for each combination",
        "",
        "  --dry-run         what would be trained, and about how long it would take",
        "  --cfg job         the whole config (--resolve: with its references filled in)",
        "  -m, --multirun    lists of values: one run for each combination",
        "  --config-dir DIR  recipes of your own: DIR/recipe/NAME.yaml",
    ]
    for group in GROUPS:
        lines += ["", f"{group}="]
        for name in options(group, None):
            text = (configs_folder() / group / f"{name}.yaml").read_text()
            lines.append(f"  {name:<22}  {first_sentence(text)}")
    lines += ["", "Keys, with the values that they have where no recipe sets them (--cfg job shows"]
    lines += ["those of a recipe):"]
    lines += [_key_line(*found) for found in walk(TrainConfig()) if found[0] != "model.name"]
    for kind, schema in MODELS.items():
        lines += ["", f"Keys of {kind} networks:"]
        lines += [_key_line(*found) for found in walk(schema(), "model.")]
    shared = {name for name, _, _ in walk(LOSSES["smoothing"]())}
    lines += ["", "Keys of loss=distillation, beside those of every loss:"]
    own = walk(LOSSES["distillation"](), "loss.")
    lines += [_key_line(*found) for found in own if found[0].partition(".")[2] not in shared]
    return "\n".join(lines) + "\n"


def _key_line(name: str, item: Field, value: Any) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    rule = "" if item.metadata["choices"] else allowed(item)
    return f"  {f'{name}={shown}':<34}  {item.metadata['doc']}" + (f"; {rule}" if rule else "")


def configs_folder() -> Path:
    """The YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def known_keys() -> list[str]:
    """Keys and groups of `lsexp train`."""
    names = [name for name, _, _ in walk(TrainConfig())]
    for model in MODELS.values():
        names += [name for name, _, _ in walk(model(), "model.")]
    for loss in LOSSES.values():
        names += [name for name, _, _ in walk(loss(), "loss.")]
    return sorted({*names, *GROUPS})


def _known(study_keys: Iterable[str] | None = None) -> list[str]:
    """Those of `lsexp train`, or of a sweep with these keys of its study."""
    return [*known_keys(), *(() if study_keys is None else (*study_keys, *sweep_keys()))]


def sweep_keys() -> list[str]:
    """Keys and groups that a sweep has beside those of `lsexp train` and of its study."""
    slurm = [name for name, _, _ in walk(SlurmConfig(), "launcher.")]
    return ["workers", "members", *SWEEP_GROUPS, *slurm]


def options(group: str, config_dir: str | None) -> list[str]:
    folders = [configs_folder() / group]
    if config_dir is not None:
        folders.append(Path(config_dir) / group)
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def first_sentence(text: str) -> str:
    """Of the comment that a configuration file begins with: what it is for.

    >>> first_sentence("# @package _global_\\n# What it\\n# is for. Cost.\\na: 1")
    'What it is for.'
    """
    said = []
    for line in text.splitlines():
        if line[:1] != "#" or line.startswith("#  "):
            break
        if not line.startswith("# @"):
            said.append(line[1:].strip())
    return re.split(r"(?<=\.)\s", " ".join(said), maxsplit=1)[0]


def _check_words(
    words: list[str], known: list[str], help_command: str
) -> tuple[list[str], list[str]]:
    """Split flags from overrides (Hydra wants flags first) and refuse what it would let pass."""
    flags: list[str] = []
    overrides: list[str] = []
    config_dir = None
    queue = list(words)
    while queue:
        word = queue.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("-m", "--multirun", "--resolve"):
            flags.append(word)
        elif flag in TAKES_VALUE:
            if not equals:
                if not queue:
                    raise UserError(f"{word}: needs a value; `{help_command}`")
                value = queue.pop(0)
            if flag in ("-cd", "--config-dir"):
                # Path.resolve raises where links go round in a circle, before Python 3.13.
                config_dir = os.path.realpath(user_path("--config-dir", value))
                if not Path(config_dir).is_dir():
                    raise UserError(f"--config-dir {value}: no such folder")
                flags += ["--config-dir", config_dir]
            else:
                if value not in ("job", "hydra", "all"):
                    raise UserError(f"--cfg {value}: must be job, hydra or all")
                flags += ["--cfg", value]
        elif word.startswith("-"):
            raise unknown(word, "flag", FLAGS, help_command)
        else:
            overrides.append(word)
    if config_dir is not None:
        _check_own(Path(config_dir))
    for word in overrides:
        _check_override(word, config_dir, known, help_command)
    typed = {word.partition("=")[0] for word in overrides}
    if {"train.steps", "train.epochs"} <= typed:
        raise UserError("train.epochs: says the same as train.steps; give one of the two")
    if "train.steps" in typed:
        overrides.append("train.epochs=null")  # what is typed wins over a recipe's epochs
    names = [word.partition("=")[0] for word in overrides]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{twice[0]}: is given twice")
    if "--resolve" in flags and "--cfg" not in flags:
        raise UserError("--resolve: goes with --cfg job")
    if "--cfg" in flags and {"-m", "--multirun"} & set(flags):
        raise UserError("--cfg: shows one config; leave -m out")
    return flags, [_for_hydra(word) for word in overrides]


def _check_own(folder: Path) -> None:
    """Refuse files of a user's folder that Hydra would pass over for ours of the same name, or that
    cannot be read."""
    ours = configs_folder()
    for group in (*GROUPS, *SWEEP_GROUPS) if folder != ours else ():
        for path in sorted((folder / group).glob("*.yaml")):
            if (ours / group / path.name).exists():
                raise UserError(f"{group}={path.stem}: lsexp has one too; rename {path}")
            try:
                path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "is no text in UTF-8"
                raise UserError(f"{group}={path.stem}: {path}: {reason}") from error


def _for_hydra(word: str) -> str:
    """An override in Hydra's grammar."""
    name, _, value = word.partition("=")
    if _in_table(name):  # names there are the user's own: Hydra must be told that they may be new
        return f"++{word}"
    if name in PATHS and value[:1] not in ("'", '"', "") and value != "null":
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{name}='{escaped}'"  # a path may hold ~, commas, brackets
    return word


def _check_override(word: str, config_dir: str | None, known: list[str], help_command: str) -> None:
    name, equals, value = word.partition("=")
    if name[:1] in ("+", "~"):
        raise UserError(
            f"{word}: keys cannot be added or removed; write key=value with a key that "
            f"`{help_command}` lists"
        )
    if not equals:
        raise UserError(f"{word}: must be key=value; `{help_command}` lists the keys")
    for sign, meaning in SIGNS.items():
        if sign in value:
            raise UserError(f"{word}: {sign} {meaning}")
    if name not in PATHS and sum(map(value.count, "[{(")) > MOST_BRACKETS:
        raise UserError(f"{name}: has more than {MOST_BRACKETS} brackets")
    if name in GROUPS or (name in SWEEP_GROUPS and name in known):
        known = options(name, config_dir)
        for one in value.split(","):
            if one not in known:
                raise UserError(f"{name}={one}: must be one of {', '.join(known)}")
        return
    table = next((table for table in TABLES if name.startswith(f"{table}.")), name)
    inner = name[len(table) + 1 :]
    if inner and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", inner):
        raise UserError(f"{word}: write such a name as '{table}={{{inner}: {value}}}'")
    if not inner and name not in known:
        within = next((key for key in known if key.startswith(f"{name}.")), None)
        if within is not None:
            raise UserError(f"{word}: is a section; set its keys, e.g. {within}=; `{help_command}`")
        if name in sweep_keys():
            raise UserError(f"{word}: goes with lsexp sweep and lsexp reproduce")
        raise unknown(word, "key", known, help_command)
    if name in _keys_of("bool"):
        _check_flag(name, value, help_command)


def _keys_of(type_begins: str) -> set[str]:
    """Keys whose values are of a type: "bool", "list"."""
    kinds = [(SweepConfig, ""), *((one, "model.") for one in MODELS.values())]
    kinds += [(one, "loss.") for one in LOSSES.values()]
    found = (each for kind, prefix in kinds for each in walk(kind(), prefix))
    return {name for name, item, _ in found if item.type.startswith(type_begins)}


def _check_flag(name: str, value: str, help_command: str) -> None:
    """Refuse numbers, of which any but 0 would be true."""
    for one in value.split(","):
        if re.fullmatch(r"\s*[-+]?[0-9_]+\s*", one) and one.strip() not in ("0", "1"):
            raise UserError(f"{name}={value}: must be true or false; `{help_command}`")


def _in_table(name: str) -> bool:
    return any(name == table or name.startswith(f"{table}.") for table in TABLES)


def _hydra(
    primary: str, flags: list[str], overrides: list[str], study: type | None = None
) -> list[tuple[Any, Any]]:
    """Compose `primary` with overrides: pairs of (typed config, Hydra's choices).

    Args:
        study: the dataclass of its keys, where `primary` is study/<name>.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _store_schemas()
    if study is not None:
        ConfigStore.instance().store(name=f"{primary.replace('/', '_')}_schema", node=study)
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the folder where this is typed has been removed; cd elsewhere") from error
    for word in overrides:
        try:
            OverridesParser.create().parse_override(word)
        except (HydraException, ValueError) as error:  # the latter: of thousands of digits
            reason = " ".join(str(error).partition("\nSee")[0].split())
            word = word.removeprefix("++")
            raise UserError(f"{word}: {reason}; quote the word for the shell?") from error
    try:
        if flags:
            collected = _as_hydras_command(primary, flags, overrides)
        else:
            collected = [_composed(primary, overrides)]
        for config, choices in collected:
            _check_budget(config, choices)
        return [(OmegaConf.to_object(config), choices) for config, choices in collected]
    except (
        *(HydraException, OmegaConfBaseException, YAMLError),
        *(ValueError, OverflowError),
    ) as error:
        raise _reworded(error) from error
    except RecursionError as error:
        raise _endless(overrides) from error


def _endless(overrides: Sequence[str]) -> UserError:
    """A file of the user's own names itself, or is nested deeper than can be read."""
    chosen = (word.partition("=") for word in overrides)
    own = [
        f"{group}={name}"
        for group, _, name in chosen
        if group in (*GROUPS, *SWEEP_GROUPS) and name not in options(group, None)
    ]
    return UserError(
        f"{(own or ['--config-dir'])[0]}: its file names itself in `defaults:`, at once or by way "
        f"of another, or is nested too deep"
    )


def _composed(primary: str, overrides: list[str]) -> tuple[Any, Any]:
    """A config, and Hydra's choices."""
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    with initialize_config_dir(str(configs_folder()), version_base="1.3"):
        config = compose(primary, overrides, return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def _as_hydras_command(
    primary: str, flags: list[str], overrides: list[str]
) -> list[tuple[Any, Any]]:
    """What a command of Hydra would be given, which knows the flags but composes twice."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    collected: list[tuple[Any, Any]] = []

    def collect(config: Any) -> None:
        collected.append((config, dict(HydraConfig.get().runtime.choices)))

    before_argv, before_env = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, rather than print and exit
    try:
        with tempfile.TemporaryDirectory() as scratch:
            sys.argv = ["lsexp", *flags, *overrides, f"hydra.sweep.dir={scratch}"]
            main = hydra.main(
                version_base="1.3", config_path=str(configs_folder()), config_name=primary
            )
            main(collect)()
    finally:
        sys.argv = before_argv
        if before_env is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before_env
    return collected


@functools.cache
def _store_schemas() -> None:
    """Tell Hydra of the dataclasses; a study's is told with it."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance().store
    store(name="train_schema", node=TrainConfig)
    store(name="sweep_schema", node=SweepConfig)
    for kind, schemas in (("model", MODELS), ("loss", LOSSES), ("launcher", LAUNCHERS)):
        for name, schema in schemas.items():
            store(name=f"{kind}_{name}_schema", node=schema)


def _check_budget(config: Any, choices: dict[str, Any]) -> None:
    if choices["budget"] not in config.budgets:
        known = options("budget", None)
        there = ", ".join(name for name in config.budgets if name in known) or "none"
        others = [name for name in config.budgets if name not in known]
        hint = f"; {', '.join(others)}: must be one of {', '.join(known)}" if others else ""
        raise UserError(
            f"budget={choices['budget']}: recipe={choices['recipe']} has {there}{hint}; its file "
            f"says e.g. `budgets: {{{choices['budget']}: {{steps: 1000}}}}`"
        )


def _reworded(error: Exception) -> UserError:
    """Hydra's message as one line that starts with the word at fault."""
    cause = "" if error.__cause__ is None else f"\n{error.__cause__}"
    text = f"{error}{cause}".partition("Config search path:")[0]
    dropped = ("To append", "full_key:", "object_type=", "reference_type=", "See https:")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(dropped)]
    if lines and lines[0].startswith("Ambiguous value for argument"):
        word = lines[0].split("'")[1].removeprefix("++")
        reason = f"{word}: several values; -m trains one run for each"
        name = word.partition("=")[0]
        if name in _keys_of("list"):
            listed = f"lsexp train -m {word}, or {word.replace('=', '=[', 1)}]"
            return UserError(f"{reason}, brackets make a list: {listed}")
        if _in_table(name) or name in GROUPS + SWEEP_GROUPS:
            return UserError(reason)
        return UserError(f"{reason}: lsexp train -m {word}")
    several = re.match(r"Sweep parameters '(?:\+\+)?(.*)' requires --multirun", " ".join(lines))
    if several:
        return UserError(f"{several[1]}: several values; -m trains one run for each")
    key = re.search(r"full_key: ([\w.-]+)", text)
    if isinstance(error, OverflowError) and key:
        return UserError(f"{key[1]}: must be finite, and this is too large a number; `{HELP}`")
    if lines and lines[0].startswith("Error merging override "):
        word = lines[0].removeprefix("Error merging override ").removeprefix("++")
        reason = " ".join(dict.fromkeys(lines[1:]))
        rule = next((rule for sign, rule in VALUE_RULES.items() if sign in reason), reason)
        return UserError(f"{word}: {rule}; `{HELP}`")
    message = " ".join(dict.fromkeys(lines))
    file = re.match(r"(In '\w+/[^']*'): (\w+) raised", message)
    if file and key and not key[1].startswith("launcher."):
        told = _of_a_file(file[1], key[1], message)
        if told is not None:
            return told
    lacking = re.search(r"Key '(\w+)' not in '(\w+)Config'", message)
    if lacking:  # of another kind of network, mostly
        where = re.match(r"(In '(?:recipe|launcher)/[^']*')|Could not override '([^']*)'", message)
        what = next((text for text in where.groups() if text), "") if where else ""
        if lacking[2] == "Launcher":
            if "In '" in what:
                return UserError(
                    f"{what}: {lacking[1]} goes with launcher=slurm, whose files begin with "
                    f"`{LAUNCHER_BEGINS}`"
                )
            return UserError(f"{what or lacking[1]}: goes with launcher=slurm")
        if lacking[2] == "Slurm":
            return UserError(
                f"{what or lacking[1]}: launcher=slurm has no {lacking[1]}; `lsexp sweep eps "
                f"--help` lists its keys"
            )
        if lacking[2] == "Loss":
            name = f"loss.{lacking[1]} " if what.startswith("In '") else ""
            return UserError(
                f"{what or lacking[1]}: {name}goes with loss=distillation; `{HELP}` lists the "
                f"keys of either loss"
            )
        return UserError(
            f"{what or lacking[1]}: {lacking[2]} networks have no {lacking[1]}; model= chooses "
            f"another; `{HELP}` lists their keys"
        )
    return UserError(f"{message}; `{HELP}`")


def _of_a_file(where: str, name: str, message: str) -> UserError | None:
    """What is wrong with a key in a file, None where it is one of another kind of network or loss.

    where: "In 'recipe/mine'"; name: of the key; message: Hydra's.
    """
    value = re.search(r"Value '(.*)' of type", message)
    if value:
        rule = next((rule for sign, rule in VALUE_RULES.items() if sign in message), message)
        return UserError(f"{where}: {name}={value[1]}: {rule}; `{HELP}`")
    if name in GROUPS:  # its keys were taken for those below it
        return UserError(f"{where}: the file must begin with `# @package _global_`")
    if name.startswith("budgets."):
        kept = ", ".join(item.name for item in fields(Budget))
        return UserError(f"{where}: {name}: no such key; a budget has {kept}")
    if name in known_keys():
        return None
    return UserError(f"{where}: {unknown(name, 'key', known_keys(), HELP)}")
