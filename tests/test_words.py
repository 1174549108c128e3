"""Words that nobody should type: each is refused in one line that names the key, or works.

The keys are those that the config's dataclasses declare, so that a new one is met too.
LSEXP_FAULTS multiplies how many cases are tried.
"""

import math
import os
from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from lsexp import compose, studies
from lsexp.cli import NOT_OURS, main
from lsexp.config import (
    LOSSES,
    MODELS,
    MLPConfig,
    SlurmConfig,
    SweepConfig,
    TrainConfig,
    check,
    walk,
)
from lsexp.errors import UserError
from lsexp.launch.plan import plan
from lsexp.sweep.asked import ask

TRIED = int(os.environ.get("LSEXP_FAULTS", 1))
QUICK = ["budget=smoke", "precision=fp32", "threads=1"]

OPTIONS = {"mlp": "mlp", "resnet": "resnet56", "custom": "custom"}
"""Networks to the option that chooses them, where that is not its name."""
CUSTOM = ["model.target=nowhere:build"]


def keys_of_train():
    """Every key of `lsexp train`, its field, and what must be typed with it for it to be there.

    By name, with the kind of network before it: kinds have keys of one name and other ranges.
    """
    found = {name: (name, item, []) for name, item, _ in walk(TrainConfig())}
    for kind, network in MODELS.items():
        more = [f"model={OPTIONS.get(kind, kind)}", *(CUSTOM if kind == "custom" else [])]
        for name, item, _ in walk(network(), "model."):
            words = [word for word in more if not word.startswith(f"{name}=")]
            found[f"{kind} {name}"] = (name, item, words)
    for name, item, _ in walk(LOSSES["distillation"](), "loss."):
        more = ["loss=distillation"] + ["loss.teacher=nobody"] * (name != "loss.teacher")
        found.setdefault(name, (name, item, more))
    return found


KEYS = keys_of_train()
STUDY_KEYS = [
    (name, item.name) for name in studies.names() for item in fields(studies.study(name, "").Config)
]

NUMBERS = ["nan", "inf", "-inf", "-0", "-1", "0", "0.5", "1.0", "1e3", "1e400", "1_000", "0x10"]
NUMBERS += ["1" + "0" * 400, "1" * 5000, "-" + "9" * 25, str(2**31), str(2**70), "٣", "²", " 1 "]
PLAIN = ["", "null", "true", "yes", "a", "x y", "ü", "a=b", "a:b", "2020-01-01", "x" * 5000]
TABLES = ["[]", "[nan]", "[[1]]", "[null]", "[1,1]", "[true]", "{}", "{a: 1}", "{a: nan}"]
TABLES += ["{a: {b: 1}}", "{1: 2}", "1,2", "1,", ",", "[" * 400 + "]" * 400]
SIGNS = ["'", '"', "[", "]", "{", "}", "(", "\\", "a\\'", "#", "*", "&a", "!!int 1", "~", "@", "%"]
REFERENCES = ["${seed}", "${loss}", "${nope}", "${oc.env:HOME}", "${", "???", "[???]", "$HOME"]
FUNCTIONS = ["range(3)", "glob(*)", "choice(1,2)", "sort(3,2)", "int(3.5)", "float(nan)", "nope(1)"]
PLACES = [
    "/",
    "/dev/null",
    "/dev/null/x",
    "a b/c d",
    "../..",
    "~nobody-at-all",
    "/proc/1/x",
    "x/" * 3000,
]
HIDDEN = ["\0", "\n", "a\nb", "\t", "\x1b[1m", "\u2028", "\udcff", "\ud800"]
VALUES = [*NUMBERS, *PLAIN, *TABLES, *SIGNS, *REFERENCES, *FUNCTIONS, *PLACES, *HIDDEN]


def tries(count):
    return settings(
        max_examples=count * TRIED,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """An empty folder to stand in, which must be empty in the end."""
    folder = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RUNS_DIR", "OUT_DIR"):
            patch.delenv(f"LSEXP_{name}", raising=False)
        patch.setenv("LSEXP_DATA_DIR", str(folder / "data"))
        # Hydra composes once more just to read this: half of the time of these tests.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None, raising=False)
        yield folder
    assert not list(folder.iterdir())


def told(call, *names):
    """What `call` gives, or None where it refuses in one line that has one of the names."""
    try:
        return call()
    except UserError as found:
        error = found
    except OSError as refused:  # too long for a file's name, which the command says in one line
        if refused.errno not in NOT_OURS:
            raise
        return None
    text = str(error)
    assert "\n" not in text
    assert "Traceback" not in text
    assert error.exit_code in (1, 2)
    assert any(str(UserError(name)) in text for name in names), text[:300]
    return None


def is_small(config):
    """Whether it costs little to plan; memory for what is legal but huge is no matter of words."""
    if not isinstance(config.model, MLPConfig) or config.train.batch_size > 4096:
        return False
    return config.data.name == "digits" and sum(config.model.widths) < 3000


def train_is_planned_or_refused(words, *names):
    def call():
        for config, chosen in compose.train_configs(words):
            check(config)
            if is_small(config):
                plan(replace(config, threads=1), chosen, ["lsexp", "train"], remember=False)
            yield config

    return told(lambda: list(call()), *names)


def in_range(item, value):
    values = list(value.values()) if isinstance(value, dict) else value
    for one in values if isinstance(values, list) else [values]:
        if isinstance(one, int | float) and not isinstance(one, bool):
            assert math.isfinite(one)
            for name, bound in item.metadata["bounds"].items():
                assert {
                    "at_least": one >= bound,
                    "more_than": one > bound,
                    "at_most": one <= bound,
                    "below": one < bound,
                }[name]
        if item.metadata["choices"]:
            assert one in item.metadata["choices"]
    if item.type == "bool":
        assert isinstance(value, bool)
    return True


def value_of(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def quick(name, more):
    """Words beside one that sets `name`."""
    return [*more, *(word for word in QUICK if not word.startswith(f"{name}="))]


def check_key(key, value):
    name, item, more = KEYS[key]
    # For what is refused beside it: loss.teacher=nobody, a network that is not there.
    names = [name, *(word.partition("=")[0] for word in more)]
    found = train_is_planned_or_refused([*quick(name, more), f"{name}={value}"], *names)
    assert all(in_range(item, value_of(config, name)) for config in found or [])


@pytest.mark.parametrize("turn", range(TRIED))
def test_every_key_takes_a_bad_value_or_refuses_it_by_name(turn):
    for number, key in enumerate(KEYS):
        check_key(key, VALUES[(13 * number + turn) % len(VALUES)])


ANYTHING = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.integers(-(10**30), 10**30).map(str),
    st.text(max_size=20),
    st.text("[]{}(),:'\"\\$~=.*? 01ae", max_size=12),
    st.lists(st.floats(), max_size=3).map(lambda found: str(found).replace(" ", "")),
    st.sampled_from(VALUES),
)


@tries(6)
@given(key=st.sampled_from(list(KEYS)), value=ANYTHING)
@example(key="optim.lr", value="1" + "0" * 400)
@example(key="augment.flip", value="-1")
@example(key="seed", value="1" * 5000)
@example(key="resnet model.depth", value=str(6 * 10**7 + 2))
def test_any_value_of_a_key_works_or_is_refused_by_name(key, value):
    check_key(key, value)


BY_TYPE = {
    "int": st.integers(-(2**70), 2**70) | st.integers(-2, 2),
    "float": st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324]),
    "str": st.text(max_size=10),
    "bool": st.booleans(),
    "Any": st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
}


def values_for(item):
    kind = str(item.type).removesuffix(" | None")
    inner = BY_TYPE[kind.removesuffix("]").rpartition("[")[2].rpartition(", ")[2]]
    if kind.startswith("list"):
        return st.lists(inner, max_size=3)
    return st.dictionaries(st.text(max_size=3), inner) if kind.startswith("dict") else inner


@tries(400)
@given(key=st.sampled_from(list(KEYS)), data=st.data())
def test_no_value_of_the_right_type_passes_the_check_out_of_range(key, data):
    name, item, _ = KEYS[key]
    section, _, last = name.rpartition(".")
    config = TrainConfig(model=MODELS.get(key.partition(" ")[0], MLPConfig)())
    if section == "loss" and not hasattr(config.loss, last):
        config.loss = LOSSES["distillation"]()
    owner = getattr(config, section) if section else config
    setattr(owner, last, data.draw(values_for(item)))
    # What must be right beside it: a network goes by the name of its depth.
    more = {"model": ("model.target", "model.name"), "loss": ("loss.teacher",)}.get(section, ())
    told(lambda: check(config) or in_range(item, value_of(config, name)), name, *more)


KEY_NAMES = sorted({name for name, _, _ in KEYS.values()})
NAMES = [
    *KEY_NAMES,
    *compose.GROUPS,
    "train",
    "optim",
    "artifacts",
    "hydra.run.dir",
    "study.eps",
    "eps",
]
BEFORE, BEHIND = ["", "+", "++", "~", ".", " ", "@", "--"], ["", ".", "..", ".x", "@x", ":x", "/x"]


@tries(200)
@given(
    before=st.sampled_from(BEFORE),
    name=st.sampled_from(NAMES) | st.text(max_size=8),
    behind=st.sampled_from(BEHIND),
    value=st.sampled_from(["", "=", "=1", "=a=b", "=\n", "=../x"]),
)
def test_structure_that_is_no_key_is_refused(before, name, behind, value):
    word = f"{before}{name}{behind}{value}"
    assume(before or behind or name not in KEY_NAMES or not value)
    # Names in tables are the user's own; flags have tests of their own.
    assume(not word.startswith(("-", "optim.lr_scale.x=", "model.args.x=", "=")) and word.split())
    assert told(lambda: compose.train_configs([word]), *word.split()) is None


@pytest.mark.parametrize("group", compose.GROUPS)
@pytest.mark.parametrize("value", ["", "../../x", "nope", "null", "a/b", "[x]", "a,b", "\n", "~"])
def test_a_group_has_its_own_options_only(group, value):
    assert told(lambda: compose.train_configs([f"{group}={value}"]), f"{group}=") is None


@tries(20)
@given(name=st.sampled_from(KEY_NAMES), values=st.tuples(*[st.sampled_from(["1", "a", ""])] * 2))
def test_a_key_is_given_once(name, values):
    words = [f"{name}={value}" for value in values]
    with pytest.raises(UserError, match="is given twice"):
        compose.train_configs(words)


def sweep_is_planned_or_refused(study, words, *names):
    module = studies.study(study, "")

    def call():
        asked = ask(study, module, words)
        for row in asked:
            if len(row.runs) <= 40:
                row.check(module, row.planned(["lsexp", "sweep"], remember=False))
        return asked

    return told(call, *names)


@pytest.mark.parametrize("turn", range(TRIED))
def test_every_key_of_a_study_takes_a_bad_value_or_refuses_it_by_name(turn):
    for number, (study, name) in enumerate(STUDY_KEYS):
        value = VALUES[(7 * number + turn) % len(VALUES)]
        few = ["seeds=1"] * (name != "seeds") + ["eps=0,0.1"] * (name != "eps")
        words = [*QUICK, *few, f"{name}={value}"]
        found = sweep_is_planned_or_refused(study, words, name)
        item = next(i for i in fields(studies.study(study, "").Config) if i.name == name)
        assert all(in_range(item, getattr(row.config.study, name)) for row in found or [])


@pytest.mark.parametrize("turn", range(TRIED))
def test_every_key_of_a_launcher_takes_a_bad_value_or_refuses_it_by_name(turn):
    for number, item in enumerate(fields(SlurmConfig)):
        value = VALUES[(7 * number + turn) % len(VALUES)]
        words = [*QUICK, "launcher=slurm", f"launcher.{item.name}={value}"]
        found = sweep_is_planned_or_refused("eps", words, f"launcher.{item.name}")
        for row in found or []:
            assert in_range(item, getattr(row.config.launcher, item.name))


@tries(5)
@given(
    study=st.sampled_from(["eps", "distillation"]),
    name=st.sampled_from(["eps", "seeds", "temperatures"]),
    values=st.lists(
        st.sampled_from(["0", "-0", "0.1", ".1", "1", "3", "nan", "inf", "-1", "1e999", "a", ""])
        | st.floats().map(repr),
        max_size=3,
    ),
)
def test_lists_hold_numbers_in_range_each_once(study, name, values):
    assume(name in {item.name for item in fields(studies.study(study, "").Config)})
    few = ["seeds=1"] * (name != "seeds") + ["temperatures=1"] * (
        study == "distillation" and name != "temperatures"
    )
    words = [*QUICK, *few, f"{name}={','.join(values)}"]
    for row in sweep_is_planned_or_refused(study, words, name) or []:
        found = getattr(row.config.study, name)
        assert found
        assert len(set(found)) == len(found)
        assert all(math.isfinite(one) and one >= 0 for one in found)


OF_SWEEPS = [name for name, _, _ in walk(SweepConfig()) if name in ("workers", "members")]


@pytest.mark.parametrize("name", OF_SWEEPS)
@pytest.mark.parametrize("value", ["0", "nan", str(2**70)])
def test_how_many_at_once_is_a_whole_number_in_range(name, value):
    assert sweep_is_planned_or_refused("eps", [f"{name}={value}"], name) is None


def refused(capsys, *words):
    """Run the command, which must refuse the words: the line that says why."""
    code = main(list(words))
    out, err = capsys.readouterr()
    assert code in (1, 2), words
    assert not out
    assert err.startswith("lsexp: ")
    assert err.count("\n") == 1
    return code, err


PARTNERS = {"distillation": ("teacher", []), "information": ("student", ["students=true"])}


@pytest.mark.parametrize("study", PARTNERS)
@pytest.mark.parametrize(
    "word", ["optim.lr=nan", "seed=1", "nope=1", "recipe=nope", "=1", "runs_dir=x"]
)
def test_keys_of_teachers_and_students_are_refused_by_name(capsys, study, word):
    kind, more = PARTNERS[study]
    code, err = refused(capsys, "sweep", study, "--dry-run", *more, f"{kind}.{word}")
    assert code == 2
    assert word.partition("=")[0] in err
    assert f"{kind}." in err or f"of the {kind}s" in err


BAD_NUMBERS = ["", "nan", "inf", "-1", "0", "1e99", "a", "1" * 5000, "[1]", "null", "٣x", "\n"]
# Each command with a key, and values that are none for it.
COMMANDS = [
    (["bench"], "seconds", BAD_NUMBERS),
    (["bench"], "workers", [*BAD_NUMBERS, "1.5", "2000"]),
    (["bench"], "members", [*BAD_NUMBERS, "1,,2", "33"]),
    (["bench"], "recipe", ["", "nope", "digits_mlp,", "../x"]),
    (["bench", "recipe=digits_mlp"], "data.path", ["x", "/dev/null"]),
    (["report"], "recipe", ["", ",", "a,"]),
    (["report"], "runs_dir", ["", "\0", "~nobody-at-all"]),
    (["report"], "figure.format", ["png", ""]),
    (["plot", "curves"], "figure.format", ["", "gif", "png,", "null"]),
    (["plot", "curves"], "runs_dir", ["/dev/null", "\0", "~nobody-at-all", "not there"]),
    (["plot", "calibration"], "logits", ["", "/dev/null", "\0", "not there.npz", "/"]),
    (["plot", "calibration"], "bins", ["0", "nan", "1.5"]),
    (["runs"], "runs_dir", ["/dev/null", "\0", "~nobody-at-all", "not there"]),
    (["data"], "data_dir", ["\0", "~nobody-at-all"]),
    (["data", "/"], "data.image_size", ["", "0", "nan", "1e3", "a", "1" * 5000]),
    (["train", "--dry-run"], "runs_dir", ["/dev/null", "/dev/null/x", "\0", "~nobody-at-all"]),
    (["sweep", "eps", "--dry-run"], "runs_dir", ["/dev/null/x", "\0", "~nobody-at-all"]),
    (["sweep", "eps", "--dry-run"], "out_dir", ["/dev/null/x", "\0", "~nobody-at-all"]),
    (["sweep", "eps", "--dry-run"], "rows", ["", ",", "nope", "a,a", "../x"]),
    (["reproduce", "--dry-run"], "eps.seeds", ["0", "nan", "0,0"]),
    (["reproduce", "--dry-run"], "optim.lr", ["nan", "1" + "0" * 400]),
]


@pytest.mark.parametrize(("command", "key", "values"), COMMANDS, ids=lambda part: str(part)[:30])
def test_a_bad_value_for_a_command_gets_one_line_with_its_key(capsys, command, key, values):
    for value in values:
        _, err = refused(capsys, *command, f"{key}={value}")
        assert key.removeprefix("eps.") in err


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "sweep eps",
        "plot curves",
        "plot eps",
        "report",
        "bench",
        "reproduce",
        "runs",
        "data",
    ],
)
@pytest.mark.parametrize("word", ["seed=\udcff", "\ud800", "--nope", "out_dir=\udcff"])
def test_a_word_that_no_record_could_hold_and_a_flag_of_none(capsys, command, word):
    assert refused(capsys, *command.split(), word)[0] == 2


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (["plot", "curves"], "runs_dir"),
        (["plot", "curves"], "figure.format"),
        (["bench"], "seconds"),
        (["report"], "recipe"),
        (["sweep", "eps"], "eps"),
        (["sweep", "eps"], "out_dir"),
        (["runs"], "runs_dir"),
        (["runs", "repair"], "runs_dir"),
        (["data"], "data.url"),
    ],
)
def test_a_key_of_a_command_is_given_once(capsys, command, key):
    value = {"figure.format": "png", "seconds": "1", "eps": "0"}.get(key, "x")
    code, err = refused(capsys, *command, f"{key}={value}", f"{key}={value}")
    assert (code, err) == (2, f"lsexp: {key}: is given twice\n")


def test_no_memory_for_a_plan_is_one_line(capsys, monkeypatch):
    """torch's words on a CPU; on a GPU they are `CUDA out of memory`."""

    def plan_that_is_too_large(*_arguments, **_keywords):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore")

    monkeypatch.setattr("lsexp.launch.plan.plan", plan_that_is_too_large)
    code, err = refused(capsys, "train", "--dry-run")
    assert code == 1
    assert "can't allocate memory" in err
