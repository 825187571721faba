"""Values for command lines: valid ones by the kind of the default, and invalid, odd and long ones."""

from __future__ import annotations

from typing import Any


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


INVALID = (
    *words("""
    abc -1 0 0.5 1e400 -1e400 1e18 1e-400 nan inf -inf null ??? '' true false True yes no on [] {} [abc] [-1]
    [null] [[]] [1,[2]] [nan] {a:1} {a:{b:1}} {a:null} [{a:1}] {_target_:os.getcwd} {1:2} {'':1} é 日本語 'é' a,b
    a=b a:b 'a,b' $ ${ } [ ] ( ) 0x10 1_000 1e3 +1 01 1. .5 1e --1 1, ,1 None NULL ~ - * &a *a
    !!python/object:os.system !tag @x %d {seed} #x a#b '#' _target_ ... .. . /
    """),
    *("", '""', "a b", "'a b'", "'a\nb'", "'a\tb'", "'\x1b[31mred'", "\\x1b", "\\'", "\\", '"a\'b"', "'a\"b'"),
    *("x" * 300, "9" * 400, "[" * 50 + "]" * 50, "[" + "1," * 500 + "1]"),
)
SWEEPS = (
    *words("""
    0,1 1,2,3 range(2) range(0,2) range(0,1,0.5) range(2,0) range(0,2,0) range(abc) range() range(2),5
    5,range(2) [range(2)] [range(2),5] [1,range(2)],[3] choice(0,1) choice(0) choice() choice(range(2),3)
    sort(1,0) sort(1,0,reverse=true) sort(abc,1) shuffle(0,1) shuffle(range(2)) shuffle([1,2]) interval(0,1)
    tag(a,0) tag(a,interval(0,1)) tag(0,1) glob(*) glob(s*) glob(s*),adam glob([s*,a*],exclude=sgd) glob(nope*)
    glob() str(1,2) int(1.5,2) float(1) bool(abc) int([1,2]) extend_list(1,2) nope(1) range(1000000) 0,0 0,,1 0,
    , null,1 '0','1' [4],[5] {a:1},{b:2} abc,-1 a,b sgd,adam sgd,nope digits,clusters ${seed},1 0,${nope} 0,???
    '' 0,'é' range(range(2)) sort(range(2)) choice(a,b),c json_str(1)
    """),
)
"""Values that sweep, or seem to."""
PATHS = (
    *words("""
    x x/y ./x x/ ../x ../../evil . .. / '' null ~ ~/x ~nosuchuser/x -x x,y x=y x:y é 日本 /proc/nope /proc/1/x
    /sys/x /dev/null /dev/null/x /dev/full own.yaml/x own.yaml bait bait/run bait/sweep bait/run/x bait/dangling
    bait/dangling/x empty shots ${name} $HOME [x] {a:1} 3 true nan ??? * x* x? 'x' x'y (x) x;y x#y
    ${oc.env:HOME}/x ${oc.env:NOPE} ${nope} ${seed} x/${seed} ${hydra:runtime.cwd}/x %s con
    """),
    *("", "x y", "x\ny", "x\ty", "\x1b[31mx", "x\\y", '"x"', 'x"y', "x" * 255, "x" * 256, "x/" * 3000),
)
"""Paths as a person may write them. None exists outside of the drill's directories."""
INTERPOLATIONS = (
    *words("""
    ${seed} ${name} ${trainer.epochs} ${trainer} ${optimizer} ${optimizer.lr} ${nope} ${trainer.nope}
    ${seed.nope} ${.} ${..} ${...} ${....} ${.lr} ${..seed} ${..nope} ${...seed} ${nope:1} ${nope:}
    ${oc.env:NOPE} ${oc.env:NOPE,3} ${oc.env:NOPE,null} ${oc.env:HOME} ${oc.env:} ${oc.decode:abc}
    ${oc.decode:'['} ${oc.decode:3} ${oc.select:nope} ${oc.select:nope,3} ${oc.select:seed} ${oc.create:[1]}
    ${oc.create:{a:1}} ${oc.dict.keys:trainer} ${oc.dict.values:trainer} ${oc.dict.keys:seed}
    ${oc.deprecated:seed} ${hydra:runtime.cwd} ${hydra:nope} ${hydra:job.num} ${hydra:job.id}
    ${hydra:runtime.output_dir} ${hydra.run.dir} ${now:%Y} ${now:} ${now:%} ${python_version:}
    ${dlhw.repeat:4,2} ${dlhw.repeat:4,-1} ${dlhw.repeat:4} ${dlhw.repeat:4,99999999} ${dlhw.nope:1} ${ ${} ${:}
    ${seed $seed $$ '${seed}' ${seed}${seed} x${seed} ${name}${nope} ${oc.env:${name}} ${${name}} ${seed}.5
    [${seed},1] {a:${seed}} ${seed:} ${oc.env:A,${nope}} ${eval:1+1} ${dlhw.experiments:} ${trainer[epochs]}
    ${model.hidden[0]}
    """),
    *("\\${seed}", '"${seed}"', "${ seed }"),
)


def valid_values(key: str, default: Any) -> list[str]:
    """Return valid values for a key with this default value."""
    name = key.rpartition(".")[2]
    known = {
        "name": ["x", "a_b"],
        "output_dir": ["outputs", "other"],
        "resume": ["null"],
        "seed": ["1", "7"],
        "activation": ["Tanh", "ReLU"],
        "hidden": ["[4]", "[]", "[4,3]"],
        "epochs": ["1", "2"],
        "steps_per_epoch": ["1", "2"],
        "n": ["50", "100"],
        "features": ["5"],
        "classes": ["3"],
        "device": ["cpu", "auto"],
        "precision": ["fp32", "bf16", "fp64"],
        "monitor": ["val_loss"],
        "train_metrics": ["running", "evaluated"],
        "trains": ["all", "head"],
        "patience": ["1"],
        "clip_norm": ["1"],
        "batch_size": ["16", "128"],
        "validation_fraction": ["0.2", "0.3"],
        "betas": ["[0.9,0.99]"],
        "frozen_views": ["null"],
        "probe_every_epochs": ["1"],
        "nesterov": ["false"],
        "download": ["false"],
    }
    if name in known:
        return known[name]
    if isinstance(default, bool):
        return ["true", "false"]
    if isinstance(default, float):
        return [str(default), "0.1", "0.01"]
    if isinstance(default, int):
        return [str(default), "1", "2"]
    if default is None:
        return ["null"]
    return [str(default).replace(" ", "").replace("'", "")]


def interpolations(key: str) -> list[str]:
    """Return interpolations of all kinds as values of a key."""
    name = key.rpartition(".")[2]
    return [*INTERPOLATIONS, f"${{{key}}}", f"${{.{name}}}", f"${{..{name}}}"]
