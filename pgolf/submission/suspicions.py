"""What reviewers of the contest look for in a script, found by the names and the order of its statements.

No proof in either direction: names may lie, and an honest script may look like one that does not. Each rule says what it
takes for a sign; the tests hold each against a script that has it and one that does not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from pgolf.submission.findings import Finding
from pgolf.submission.signs import Taint, called, calls, functions, is_data, name_words, named, strings, targets_of

VALIDATION, LEARNING = {"val", "valid", "validation"}, {"ttt", "adapt"}
CALIBRATION = {"calib", "calibrate", "calibration", "gptq", "hessian", "hessians"}
FETCHES = {
    "create_connection", "hf_hub_download", "load_dataset", "load_state_dict_from_url", "snapshot_download", "urlopen",
    "urlretrieve",
}  # fmt: skip
FETCHERS = re.compile(r"^(requests|httpx|boto3|wandb|urllib3)\.\w+$|^torch\.hub\.\w+$|^(ftplib|smtplib)\.")
FETCH_COMMAND = re.compile(r"\b(curl|wget|git clone|pip3? install|aws s3|huggingface-cli|gsutil|rsync|scp)\b")
READERS = {
    "open",
    "load",
    "load_file",
    "fromfile",
    "memmap",
    "read_bytes",
    "read_text",
    "loadtxt",
    "genfromtxt",
    "read_csv",
}
PATHS = {"Path", "with_name", "join", "joinpath", "PurePath"}
PACKAGE_DATA = {"getsitepackages", "get_data", "importlib.resources.files", "importlib.resources.open_binary"}
PUBLIC = re.compile(r"fineweb|dataset|tokenizer|/dev/|/proc/|/sys/|/etc/os-release|\.model$")
NORMALISERS = {
    "cross_entropy", "CrossEntropyLoss", "log_softmax", "logsumexp", "nll_loss", "softmax", "linear_cross_entropy",
    "LigerCrossEntropyLoss",
}  # fmt: skip


def suspicions(file: str, tree: ast.Module, together: ast.Module | None = None) -> list[Finding]:
    """Everything suspicious in one script. together: all scripts of the submission as one, its own tree by default."""
    rules: list[Callable[[ast.Module], Iterator[tuple[int, str, str]]]] = [
        _network, _validation_in_training, _learns_before_scoring, _raised_targets, _ngrams, _reads_outside,
    ]  # fmt: skip
    found = [Finding(file, line, kind, text) for rule in rules for line, kind, text in rule(tree)]
    return found + [Finding(file, *what) for what in _no_normaliser(tree, together or tree)]


Found = Iterator[tuple[int, str, str]]  # line, kind, text


def _network(tree: ast.Module) -> Found:
    """Calls that fetch, and command lines of programs that do."""
    for node, name in calls(tree):
        if name.rpartition(".")[2] in FETCHES or FETCHERS.match(name):
            yield node.lineno, "network", f"calls {name}"
        elif name in {"os.system", "os.popen"} or name.startswith("subprocess."):
            command = " ".join(strings(node))
            if match := FETCH_COMMAND.search(command):
                yield node.lineno, "network", f"runs {match[0]}"


def _is_validation(name: str) -> bool:
    return bool(name_words(name) & VALIDATION) and is_data(name)


def _speaks_of_validation(node: ast.AST) -> str:
    """The name or string in an expression by which validation text is meant; "" if there is none."""
    for name in named(node):
        if _is_validation(name):
            return name
    for text in strings(node):
        if re.search(r"(^|[_/.*-])(val|valid|validation)([_/.*-]|$)", text) and re.search(r"[/*.]", text):
            return text
    return ""


def _validation_in_training(tree: ast.Module) -> Found:
    """Names of training or calibration data that are given validation data, and calls that train or calibrate on it."""
    for node in ast.walk(tree):
        for target, value in targets_of(node):
            words = name_words(target)
            trains = "train" in words and is_data(target) and not words & VALIDATION
            calibrates = bool(words & CALIBRATION) and is_data(target)
            if (trains or calibrates) and (what := _speaks_of_validation(value)):
                yield getattr(node, "lineno", 0), "training", f"{target} is made of {what}"
    for node, name in calls(tree):
        words = name_words(name.rpartition(".")[2])
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        collects = bool(words & CALIBRATION) and not words & VALIDATION
        trains = "train" in words and bool(words & {"on", "step", "batch", "epoch"}) and not words & LEARNING
        if collects or trains:
            for what in filter(None, map(_speaks_of_validation, given)):
                yield node.lineno, "training", f"{name} is given {what}"
                break


def _learns_before_scoring(tree: ast.Module) -> Found:
    """Functions that take gradients of a loss of validation text where no score was added up before, neither in them nor
    where they are called."""
    every = list(functions(tree))
    scores = {function: _scores(function) for function in every}
    sites = [(caller, _place(node), name) for caller in every for node, name in calls(caller)]
    for function in every:
        begins = _starts(function)
        backward = [node for node, name in calls(function) if name.endswith("backward")]
        steps = sorted(_place(node) for node in backward if Taint(function, node, begins).holds(node))
        if not steps or any(place < steps[0] for place in scores[function]):
            continue
        callers = [(scores[caller], place) for caller, place, name in sites if name.rpartition(".")[2] == function.name]
        if not callers or not all(places and places[0] < place for places, place in callers):
            later = "is scored only after" if scores[function] else "is not scored in"
            yield steps[0][0], "order", f"learns from validation text that {later} {function.name}"


Place = tuple[int, int]  # line and column: a minified script has many statements on a line


def _place(node: ast.AST) -> Place:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


def _starts(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Callable[[str], bool]:
    """Which names mean validation text: by their words, or as data that a function of evaluation is given."""
    evaluates = bool(name_words(function.name) & (VALIDATION | LEARNING | {"eval", "evaluate"}))
    arguments = function.args
    given = {
        a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs] if evaluates and is_data(a.arg)
    }
    return lambda name: _is_validation(name) or name in given


def _scores(function: ast.AST) -> list[Place]:
    """Where a loss is added up: `loss_sum += …`, `a += ….item()`, `nll[a:b] = …`, `losses.append(…)`, `nats.add_(…)`."""
    words = {"loss", "losses", "nll", "nlls", "nats", "bpb", "bits", "score", "scores", "ce"}
    summed = {"item", "sum", "cross_entropy", "double"}
    found = []
    for node in ast.walk(function):
        match node:
            case ast.AugAssign(op=ast.Add(), value=value) if {
                name.rpartition(".")[2] for _, name in calls(value)
            } & summed:
                where: ast.AST | None = ast.Name("loss")  # the names of a minified script tell nothing
            case ast.AugAssign(target=target) | ast.Assign(targets=[ast.Subscript() as target]):
                where = target
            case ast.Call(
                func=ast.Attribute(value=value, attr="append" | "add_" | "index_add_" | "scatter_add_" | "extend")
            ):
                where = value
            case ast.Call(func=ast.Name(id=name)) if name_words(name) & {"accumulate", "accum", "score", "record"}:
                where = ast.Name("loss")
            case _:
                where = None
        if where is not None and any(name_words(name) & words for name in named(where)):
            found.append(_place(node))
    return sorted(found)


def _raised_targets(tree: ast.Module) -> Found:
    """Logits or probabilities that are changed at the place of the target."""
    outputs = {"logits", "logit", "logprobs", "probs", "probabilities"}
    truths = {"target", "targets", "label", "labels", "y", "answer", "answers"}

    def speak(node: ast.AST, words: set[str]) -> bool:
        return any(name_words(name) & words for name in named(node))

    for node in ast.walk(tree):
        match node:
            case (
                ast.AugAssign(target=ast.Subscript(value=value, slice=index))
                | ast.Assign(targets=[ast.Subscript(value=value, slice=index)])
            ) if speak(value, outputs) and speak(index, truths):
                yield node.lineno, "probability", "changes logits at the target"
            case ast.Call(func=ast.Attribute(value=value, attr=attr), args=args) if (
                attr.startswith(("scatter", "index_put", "index_add")) and speak(value, outputs)
            ) and any(speak(a, truths) for a in args[:2]):
                yield node.lineno, "probability", "changes logits at the target"
            case ast.BinOp(left=left, right=right) if speak(left, outputs) or speak(right, outputs):
                hot = [
                    c
                    for side in (left, right)
                    for c, name in calls(side)
                    if name.endswith("one_hot") and speak(c, truths)
                ]
                if hot:
                    yield node.lineno, "probability", "adds the target to logits"


def _no_normaliser(tree: ast.Module, together: ast.Module) -> Found:
    """A script that prints bits per byte, where nothing normalises over the vocabulary."""
    lines = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Constant) and "val_bpb" in str(n.value)]
    says = {name.rpartition(".")[2] for name in named(together)}
    if lines and not says & NORMALISERS and not any("softmax" in name or "cross_entropy" in name for name in says):
        yield lines[0], "probability", "reports val_bpb, and no softmax or cross entropy is in sight"


def _ngrams(tree: ast.Module) -> Found:
    """Names that say that counts of the text are mixed into the probabilities; embeddings of hashed pairs are none."""
    grams = {"ngram", "ngrams", "bigram", "trigram", "gram"}
    uses = {
        "cache",
        "mix",
        "mixer",
        "mixing",
        "blend",
        "backoff",
        "counts",
        "interp",
        "interpolate",
        "lookup",
        "prob",
        "probs",
    }
    for node in ast.walk(tree):
        names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        names += [target for target, _ in targets_of(node)]
        for name in names:
            words = name_words(name)
            if words & grams and words & uses and not words & {"embed", "embedding", "hash"}:
                yield getattr(node, "lineno", 0), "ngram", f"{name} speaks of counts of the text"


def _reads_outside(tree: ast.Module) -> Found:
    """Files that are read by a name that leads out of the folder, that do not count, or that lie in a package."""
    for node, name in calls(tree):
        last = name.rpartition(".")[2]
        if last in PACKAGE_DATA or name in PACKAGE_DATA:
            yield node.lineno, "outside", f"{name} reads from an installed package"
        if last not in READERS | PATHS or _writes(node):
            continue
        for text in strings(node):
            if text in {"README.md", "requirements.txt", "submission.json"}:
                yield node.lineno, "outside", f"reads {text}, which does not count"
            elif re.match(r"(/|~/?|(\.\./)+)\w", text) and last in READERS | {"Path"} and not PUBLIC.search(text):
                yield node.lineno, "outside", f"reads {text}, outside of the folder"


def _writes(call: ast.Call) -> bool:
    modes = [a.value for a in call.args[1:2] if isinstance(a, ast.Constant)]
    modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    return called(call).endswith("open") and any(set(str(mode)) & set("wax") for mode in modes)
