"""A person's own experiment files and code, correct and with common mistakes."""

from __future__ import annotations

from random import Random

HEAD = "# @package _global_\n"
NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, outputs, width=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x)
"""
EXPERIMENT = f"""{HEAD}defaults:
  - override /model: mlp

name: own
model:
  hidden: [4]
optimizer:
  lr: 0.1
"""
WITH_CODE = f"{HEAD}name: own\nmodel:\n  _target_: mycode.Net\n"
NESTED = "".join(f"{' ' * depth}a{depth}:\n" for depth in range(300)) + " " * 300 + "b: 1\n"
BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{one}: &{one} [*{before},*{before},*{before},*{before},*{before},*{before},*{before},*{before}]\n"
    for before, one in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nine aliases within each other: a billion values."""

EXPERIMENTS = {
    "correct": EXPERIMENT,
    "tab": EXPERIMENT.replace("  lr", "\tlr"),
    "indentation": EXPERIMENT.replace("  hidden", "   hidden: [3]\n  hidden"),
    "colon": EXPERIMENT.replace("lr: 0.1", "lr 0.1"),
    "no space": EXPERIMENT.replace("lr: 0.1", "lr:0.1"),
    "duplicate": EXPERIMENT + "name: again\n",
    "bracket": EXPERIMENT.replace("[4]", "[4"),
    "quote": EXPERIMENT.replace("name: own", "name: 'own"),
    "null character": EXPERIMENT + "x: \0\n",
    "list": f"{HEAD}- name: own\n- seed: 3\n",
    "text": f"{HEAD}just words\n",
    "number": "3\n",
    "empty": "",
    "only a comment": HEAD,
    "null": f"{HEAD}null\n",
    "two documents": f"{EXPERIMENT}---\nname: other\n",
    "no package line": EXPERIMENT.removeprefix(HEAD),
    "misspelt package line": EXPERIMENT.replace("_global_", "_globl_"),
    "package of another group": EXPERIMENT.replace("_global_", "model"),
    "includes itself": f"{HEAD}defaults:\n  - own\n",
    "includes a missing one": f"{HEAD}defaults:\n  - nope\n",
    "includes another": f"{HEAD}defaults:\n  - flooding\nname: own\nb: 0.1\ntrainer: {{epochs: 1}}\n",
    "override without slash": EXPERIMENT.replace("override /model", "override model"),
    "override without word": EXPERIMENT.replace("override /model: mlp", "/model: mlp"),
    "unknown option": EXPERIMENT.replace("/model: mlp", "/model: resnet99"),
    "unknown group": EXPERIMENT.replace("/model: mlp", "/modle: mlp"),
    "option is a list": EXPERIMENT.replace("/model: mlp", "/model: [mlp, cnn]"),
    "defaults is text": f"{HEAD}defaults: flooding\n",
    "defaults is a mapping": f"{HEAD}defaults: {{override /model: mlp}}\n",
    "defaults with null": f"{HEAD}defaults: [null]\n",
    "defaults at the end": f"{HEAD}name: own\ndefaults:\n  - override /model: mlp\n",
    "unknown key": EXPERIMENT + "epochs: 1\n",
    "misspelt group": EXPERIMENT.replace("optimizer:", "optimiser:"),
    "misspelt option": EXPERIMENT.replace("lr: 0.1", "lrr: 0.1"),
    "wrong value": EXPERIMENT.replace("lr: 0.1", "lr: abc"),
    "wrong kind": EXPERIMENT.replace("hidden: [4]", "hidden: {a: 1}"),
    "group is text": f"{HEAD}model: mlp\n",
    "group is null": f"{HEAD}model:\n",
    "group is a list": f"{HEAD}model: [1]\n",
    "seed is missing": f"{HEAD}seed: ???\n",
    "interpolation": f"{HEAD}seed: ${{nope}}\n",
    "unknown resolver": f"{HEAD}seed: ${{nope:1}}\n",
    "interpolation of itself": f"{HEAD}seed: ${{seed}}\n",
    "broken interpolation": f"{HEAD}seed: ${{oops\n",
    "own knob": f"{HEAD}rate: 0.1\noptimizer: {{lr: ${{rate}}}}\n",
    "hydra is text": f"{HEAD}hydra: nope\n",
    "hydra mode": f"{HEAD}hydra: {{mode: nope}}\n",
    "sweep": f"{HEAD}hydra: {{mode: MULTIRUN, sweeper: {{params: {{seed: '0,1'}}}}}}\n",
    "sweep of unknown key": f"{HEAD}hydra: {{mode: MULTIRUN, sweeper: {{params: {{nope: '0,1'}}}}}}\n",
    "sweep of a number": f"{HEAD}hydra: {{mode: MULTIRUN, sweeper: {{params: 3}}}}\n",
    "sweep of a list": f"{HEAD}hydra: {{mode: MULTIRUN, sweeper: {{params: {{seed: [0, 1]}}}}}}\n",
    "escape sequence": f'{HEAD}name: "\\e[31mred"\n',
    "escape sequence in a key": f'{HEAD}"\\e[31mred": 1\n',
    "not ASCII": f"{HEAD}name: été\n",
    "key is a number": f"{HEAD}3: 4\n",
    "key is null": f"{HEAD}null: 4\n",
    "key is a list": f"{HEAD}[1, 2]: 4\n",
    "key with dots": f"{HEAD}optimizer.lr: 0.1\n",
    "python tag": f"{HEAD}seed: !!python/object/apply:os.getcwd []\n",
    "unknown tag": f"{HEAD}seed: !nope 3\n",
    "date": f"{HEAD}seed: 2026-01-01\n",
    "binary": f"{HEAD}name: !!binary aGVsbG8=\n",
    "merge": f"{HEAD}a: &a {{lr: 0.1}}\noptimizer: {{<<: *a}}\n",
    "unknown alias": f"{HEAD}seed: *nope\n",
    "alias of itself": f"{HEAD}model: &m {{hidden: *m}}\n",
    "alias bomb": HEAD + BOMB,
    "nested": HEAD + NESTED,
    "long line": f"{HEAD}name: {'x' * 5000}\n",
    "target": f"{HEAD}model: {{_target_: nope.Nope}}\n",
    "target is a number": f"{HEAD}model: {{_target_: 3}}\n",
    "target is a constant": f"{HEAD}model: {{_target_: math.pi}}\n",
    "target without a dot": f"{HEAD}model: {{_target_: Nope}}\n",
    "target is a module": f"{HEAD}model: {{_target_: mycode}}\n",
    "arguments": f"{HEAD}model: {{_target_: mycode.Net, nope: 1}}\n",
}
CODE = {
    "correct": NETWORK,
    "syntax error": "def f(:\n",
    "indentation error": "def f():\nreturn 1\n",
    "unknown module": "import nope_nope\n",
    "unknown name": "x = nope\n",
    "raises at import": "raise RuntimeError('deliberate')\n",
    "exits at import": "import sys\nsys.exit(0)\n",
    "no class": "",
    "lower case": NETWORK.replace("class Net", "class net"),
    "no shape": NETWORK.replace("self, shape, outputs, width=4", "self")
    .replace("outputs)", "10)")
    .replace("width", "4"),
    "other arguments": NETWORK.replace("shape, outputs, width=4", "inputs, classes")
    .replace("width", "4")
    .replace("outputs", "classes"),
    "wrong input size": NETWORK.replace("64", "63"),
    "wrong output size": NETWORK.replace("width, outputs)", "width, 3)"),
    "too many outputs": NETWORK.replace("width, outputs)", "width, 300)"),
    "no super": NETWORK.replace("super().__init__()", "pass"),
    "no forward": NETWORK.partition("    def forward")[0],
    "forward returns nothing": NETWORK.replace("return self.layers(x)", "self.layers(x)"),
    "forward returns a pair": NETWORK.replace("return self.layers(x)", "return self.layers(x), 1"),
    "forward returns a number": NETWORK.replace("return self.layers(x)", "return 3.0"),
    "forward forgets the batch": NETWORK.replace("return self.layers(x)", "return self.layers(x)[0]"),
    "forward is not a number": NETWORK.replace("return self.layers(x)", "return self.layers(x) * float('nan')"),
    "forward raises": NETWORK.replace("return self.layers(x)", "raise RuntimeError('deliberate')"),
    "constructor raises": NETWORK.replace("super().__init__()", "raise RuntimeError('deliberate')"),
    "no parameters": NETWORK.replace("return self.layers(x)", "return x.flatten(1)[:, :10]").replace(
        "self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))", "pass"
    ),
    "function": "def Net(shape, outputs):\n    return 3\n",
    "network is a dictionary": "Net = {}\n",
    "prints": f"print('hello')\n{NETWORK}",
    "complex": NETWORK.replace("return self.layers(x)", "return self.layers(x) + 0j"),
    "double": NETWORK.replace("return self.layers(x)", "return self.layers(x).double()"),
    "detached": NETWORK.replace("return self.layers(x)", "return self.layers(x).detach()"),
}


def draw(random: Random) -> tuple[dict[str, str], list[str]]:
    """Return files for the folder of a drill, and the words of a command line that uses them."""
    if random.random() < 0.35:
        code = CODE[random.choice(sorted(CODE))]
        files = {"mycode.py": code, "mine/experiment/own.yaml": WITH_CODE}
    else:
        files = {"mycode.py": NETWORK, "mine/experiment/own.yaml": EXPERIMENTS[random.choice(sorted(EXPERIMENTS))]}
    name = "own"
    if random.random() < 0.15:  # an intact file beside a broken one
        files["mine/experiment/intact.yaml"] = EXPERIMENT
        name = "intact"
    words = ["--config-dir", "mine", f"experiment={name}"]
    if random.random() < 0.1:
        words = [*words, "-m", "seed=0,1"]
    return files, words
