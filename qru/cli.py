"""``qru``: the command. Thin: each command checks what it is given, calls one function of the package, and prints.

Exit codes: 0 done, or what was asked about holds; 1 it does not hold; 2 bad input, with one line on stderr that says
what to do; 3 a defect of this program, with its trace. Results go to stdout, progress to stderr. Heavy imports stand
inside the commands, so that help is instant.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

HOLDS, DOES_NOT, BAD, DEFECT = 0, 1, 2, 3
NAMES = {"method", "adapter", "weights", "corpus", "scale", "target", "retrained", "tokenizer", "seed", "epochs"}

AUDIT = """\
Which weights of a fine-tune, such as an unlearned model, cross a quantization bin, and how much of the update is left.

BASE and UNLEARNED are folders of safetensors checkpoints (one file, or shards with an index; a snapshot in the Hub's
cache is one); UNLEARNED may also be a peft LoRA adapter of BASE. They are read tensor by tensor: a model of any size
needs the memory of a few of its matrices. Only linear layers are quantized; embeddings, norms and head are compared.
"""
AUDIT_MORE = """\
The update holds (exit code 0) if its projection over all layers is at least 0.5 under every grid given, or if all of it
lies in tensors that are not quantized; otherwise, and if nothing changed at all, it does not (exit code 1). This is a
convention, ours. Projection: <Q(W+dW) - Q(W), dW> / <dW, dW>, 1 if all of the update survives on average, 0 if it is
lost. It says what quantization does to the weights; what the model then remembers, `qru evaluate` measures.

examples:
  qru audit models/llama models/llama-unlearned
  qru audit models/llama adapters/forget --spec rtn-int4-g128 --spec rtn-int8-row --html report.html
  qru audit models/llama adapters/first --adapter adapters/second --json audit.json --csv layers.csv
  qru audit models/llama models/tuned --json - --no-sha256 | jq .holds
"""
QUANTIZE = """\
Quantize a checkpoint of any size to a folder that transformers, vLLM or llama.cpp load, and count what that does to its
update.

BASE, or BASE with the adapters merged into it, or the fine-tuned weights, are read tensor by tensor, rounded, packed
and written; memory for a few matrices is enough. OUT appears only when it is complete and was read back. The same
command goes on where it was killed. Embeddings, norms and head are not quantized. Tokenizer, generation settings and
chat template come along; a model card says what it was made from.

formats:
  compressed-tensors   4 or 8 bits, symmetric, for transformers and vLLM; steps in the model's own type. vLLM's kernels
                       take groups of 32, 64 or 128, or rows
  gguf                 Q4_0 or Q8_0, rounded as llama.cpp rounds; models of the Llama architecture
  safetensors          any grid, dequantized: an ordinary checkpoint, as large as before, for evaluation anywhere
"""
QUANTIZE_MORE = """\
Exit code 1: written, but of an update to the linear layers less than half is left (projection under 0.5, as in
`qru audit`). Exit code 2: nothing is written.

examples:
  qru quantize models/llama --adapter adapters/forget --out models/llama-int4
  qru quantize models/llama --weights models/unlearned --out models/int8 --spec rtn-int8-row --json result.json
  qru quantize models/llama --adapter adapters/forget --out models/gguf --format gguf --spec Q4_0
  qru quantize models/llama --out models/plain-int3 --format safetensors --spec rtn-int3-g128
"""
UNLEARN = """\
Unlearn, quantize and measure: what notebooks/02_unlearn.ipynb does for one model. A run that is killed resumes, a run
that is complete is reused.
"""
UNLEARN_MORE = """\
examples:
  qru unlearn --method npo_gdr --adapter lora
  qru unlearn --method ga_klr --corpus news --scale smoke -p epochs=2 -p quantizers=rtn-int4-g128,rtn-int3-g128
  qru unlearn --scale muse --corpus mine.jsonl --target models/target --retrained models/base --json -
"""
EVALUATE = """\
Score a checkpoint on a corpus: VerbMem, KnowMem, PrivLeak and utility, with intervals.
"""
EVALUATE_MORE = """\
PrivLeak compares with a model that never saw the forget set: without --retrained it is left out.

examples:
  qru evaluate runs/ID/model --corpus books
  qru evaluate models/unlearned --corpus data/books --retrained models/retrained --metrics verbmem,privleak
"""
CERTIFY = """\
Certify that what was unlearned stays forgotten: the worst case over quantizers, seeds and transforms, as excess over
the retrained model after the same treatment, with one-sided 95 % bounds, bound to the SHA-256 of the weights.

Each RUN is a folder with record.json and model/, as `qru unlearn` and notebooks/02_unlearn.ipynb leave it; several are
runs of one configuration with different seeds. The certificate goes beside the weights, RUN/model/certificate.json,
where `qru quantize` finds it, and a page for people to RUN/certificate.html. What was scored before a kill is kept.

transforms:
  merged               as it is: adapters merged, then quantized
  twice-<quantizer>    stored under that quantizer first, then quantized again
  prune-<percent>      the smallest weights of every linear layer set to zero, then quantized
  relearn-<p>x<k>      quantized, then trained for k steps on p forgotten passages; scored on the others
"""
CERTIFY_MORE = """\
Exit code 0: the certificate holds. 1: it does not hold (some upper bound of the excess is over the ceiling), or it is
refused (some lower bound of utility is under the floor: a destroyed model has forgotten everything). 2: bad input.
With --verify, 0: the document is unedited, holds, and names the weights of every RUN given (also the folder of a
checkpoint); 1: it does not.

Of a metric that --metrics leaves out nothing is said, and the certificate says so: without knowmem it is one of text.

examples:
  qru certify runs/ID
  qru certify runs/ID-s0 runs/ID-s1 runs/ID-s2 --quantizers rtn-int8-row,rtn-int4-g128,rtn-int3-g128
  qru certify runs/ID --transforms merged,relearn-4x8 --forget-ceiling 5 --json certificate.json --html certificate.html
  qru certify runs/ID --metrics verbmem
  qru certify --verify certificate.json runs/ID
"""


class Parser(argparse.ArgumentParser):
    """As argparse's, but a mistake is one line and not the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD, f"{self.prog}: {message}. See {self.prog} --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; those of this process unless given.

    Returns:
        The exit code.
    """
    given = parser().parse_args(arguments)
    try:
        return given.run(given)
    except (ValueError, LookupError, OSError) as error:
        say = " ".join(str(error).split()) or type(error).__name__
        print(f"qru {given.command}: {say}", file=sys.stderr)
        return BAD
    except KeyboardInterrupt:
        print(f"qru {given.command}: interrupted.", file=sys.stderr)
        return 130
    except Exception:  # Python's own code for it is 1, which says that something does not hold
        traceback.print_exc()
        return DEFECT


def parser() -> Parser:
    """The command line. A command adds its own parser here and sets ``run``: parsed arguments -> exit code."""
    top = Parser(
        prog="qru",
        description="Does what a language model forgot come back when it is quantized, and why?",
        epilog="qru COMMAND --help has examples.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_audit(commands)
    add_quantize(commands)
    add_unlearn(commands)
    add_evaluate(commands)
    add_certify(commands)
    return top


def add_command(commands, name: str, text: str, more: str, short: str) -> Parser:
    """One command's parser, its help shown as it is written."""
    shape = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=short, description=text, epilog=more, formatter_class=shape)


def add_audit(commands) -> None:
    one = add_command(commands, "audit", AUDIT, AUDIT_MORE, "which weights cross a bin, and what is left of an update")
    one.add_argument("base", metavar="BASE", help="folder of the checkpoint before")
    one.add_argument("unlearned", metavar="UNLEARNED", help="folder of the checkpoint after, or of a LoRA adapter")
    one.add_argument(
        "--adapter", metavar="DIR", action="append", default=[], help="a further adapter, merged in this order"
    )
    one.add_argument(
        "--spec", metavar="NAME", action="append", help="a grid, such as rtn-int4-g128 (the default) or rtn-int8-row"
    )
    one.add_argument(
        "--json", metavar="FILE", help="write everything as JSON; - is stdout, and nothing else is printed"
    )
    one.add_argument("--csv", metavar="FILE", type=Path, help="write the counts of each layer")
    one.add_argument("--html", metavar="FILE", type=Path, help="write a report for a browser, in one file")
    one.add_argument("--no-sha256", action="store_true", help="do not compute the digests of the files")
    one.add_argument("--quiet", action="store_true", help="no progress bar")
    one.set_defaults(run=audit)


def audit(given: argparse.Namespace) -> int:
    """``qru audit``."""
    inputs = [given.base, given.unlearned, *given.adapter]
    for path in (given.json, given.csv, given.html):
        check_output(path, inputs)
    from qru.checkpoint_audit import audit_checkpoint, table
    from qru.ops import QuantSpec

    names = [name for text in given.spec or ["rtn-int4-g128"] for name in text.split(",")]
    result = audit_checkpoint(
        given.base,
        given.unlearned,
        [QuantSpec.parse(name.strip()) for name in names],
        given.adapter,
        digests=not given.no_sha256,
        progress=not given.quiet,
    )
    if given.csv:
        write_csv(given.csv, table(result))
    if given.html:
        from qru.audit_report import write_report

        with writing(given.html):
            write_report(result, given.html)
    if not put_json(given.json, result):
        print("\n".join(result["reading"]))
        print(f"\n{'holds' if result['holds'] else 'does not hold'}")
    return HOLDS if result["holds"] else DOES_NOT


def add_quantize(commands) -> None:
    short = "merge, quantize and pack a checkpoint for transformers, vLLM or llama.cpp"
    one = add_command(commands, "quantize", QUANTIZE, QUANTIZE_MORE, short)
    one.add_argument("base", metavar="BASE", help="folder of the checkpoint before")
    one.add_argument("--out", metavar="DIR", required=True, help="the new folder")
    update = one.add_mutually_exclusive_group()
    update.add_argument(
        "--adapter", metavar="DIR", action="append", help="a LoRA adapter of BASE; several are merged in this order"
    )
    update.add_argument(
        "--weights", metavar="DIR", help="the checkpoint after full fine-tuning, in place of an adapter"
    )
    one.add_argument(
        "--format", metavar="NAME", default="compressed-tensors",
        help="compressed-tensors (the default), gguf or safetensors",
    )  # fmt: skip
    one.add_argument(
        "--spec",
        metavar="NAME",
        help="a grid, such as rtn-int4-g128 (the default) or rtn-int8-row; Q4_0 or Q8_0 for gguf",
    )
    one.add_argument(
        "--dtype", metavar="NAME", default="bfloat16", help="of what is not quantized: bfloat16, float16 or float32"
    )
    one.add_argument("--shard-size", metavar="SIZE", default="1GB", help="of a file, such as 500MB; 1GB unless given")
    one.add_argument(
        "--json", metavar="FILE", help="write counts and sizes as JSON; - is stdout, and nothing else is printed"
    )
    one.add_argument("--quiet", action="store_true", help="no progress bar")
    one.set_defaults(run=quantize)


def quantize(given: argparse.Namespace) -> int:
    """``qru quantize``."""
    inputs = [given.base, given.out, *(given.adapter or []), *([given.weights] if given.weights else [])]
    check_output(given.json, inputs)
    part_bytes = size_of(given.shard_size)
    from qru.checkpoint_audit import HOLDS as LEAST
    from qru.checkpoint_audit import number, percent
    from qru.records import file_size
    from qru.ship import quantize_checkpoint

    try:
        result = quantize_checkpoint(
            given.base,
            given.out,
            adapter=given.adapter,
            weights=given.weights,
            format=given.format,
            spec=given.spec,
            dtype=given.dtype,
            part_bytes=part_bytes,
            progress=not given.quiet,
        )
    except KeyboardInterrupt:
        print("qru quantize: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    counts = result["total"]
    holds = counts["projection"] is None or counts["projection"] >= LEAST
    if not put_json(given.json, result):
        crossed, predicted = (percent(counts[key] / counts["weights"]) for key in ("crossed", "predicted"))
        print(f"{result['out']}: {file_size(result['bytes'])}, {result['format']}, {result['grid']}")
        if counts["projection"] is None:
            print("There was no update to the linear layers.")
        else:
            print(
                f"{percent(counts['moved'] / counts['weights'])} of the weights moved, {crossed} crossed a bin "
                f"({predicted} to expect); projection {counts['projection']:.3f}, cosine {number(counts['cosine'])}."
            )
            print(f"the update {'holds' if holds else 'does not hold'}")
    return HOLDS if holds else DOES_NOT


def size_of(text: str) -> int:
    """``"500MB"`` -> 500,000,000 bytes."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
    unit = next((unit for unit in units if text.upper().endswith(unit)), "")
    number = text[: len(text) - len(unit)].strip()
    if not unit or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"--shard-size is {text!r}; give a whole number with its unit, such as 500MB or 2GB.")
    return int(number) * units[unit]


def add_unlearn(commands) -> None:
    one = add_command(commands, "unlearn", UNLEARN, UNLEARN_MORE, "unlearn, quantize and measure one model")
    for name in sorted(NAMES):
        one.add_argument(f"--{name}", metavar="VALUE")
    one.add_argument(
        "-p", metavar="NAME=VALUE", action="append", default=[], help="any parameter of the notebook's run, by its name"
    )
    one.add_argument("--json", metavar="FILE", help="also write the record; - is stdout, and nothing else is printed")
    one.set_defaults(run=unlearn)


def unlearn(given: argparse.Namespace) -> int:
    """``qru unlearn``."""
    parameters = {}
    for pair in given.p:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"-p {pair!r} is no NAME=VALUE, such as epochs=2.")
        parameters[name] = text
    parameters |= {name: value for name in NAMES if (value := getattr(given, name)) is not None}
    check_output(given.json, [])
    from qru.pipeline import run
    from qru.records import read_json
    from qru.train import value

    record = run(**{name.replace("-", "_"): value(text) for name, text in parameters.items()})
    if not put_json(given.json, read_json(record.path)):
        print("\n".join(record.extra["verdict"]))
        print(f"\n{record.path}")
    return HOLDS


def add_evaluate(commands) -> None:
    one = add_command(commands, "evaluate", EVALUATE, EVALUATE_MORE, "score a checkpoint on a corpus")
    one.add_argument("model", metavar="MODEL", help="folder of a checkpoint, or a Hub id")
    one.add_argument("--corpus", metavar="NAME", default="books", help="embedded, a folder, a .jsonl file, or MUSE's")
    one.add_argument("--scale", metavar="NAME", default="mini", help="of an embedded corpus: smoke or mini")
    one.add_argument("--retrained", metavar="MODEL", help="a model that never saw the forget set, for PrivLeak")
    one.add_argument("--tokenizer", metavar="DIR", help="where it does not lie beside the model")
    one.add_argument("--metrics", metavar="NAMES", help="with commas; all that the corpus has data for unless given")
    one.add_argument("--json", metavar="FILE", help="also write the scores; - is stdout, and nothing else is printed")
    one.add_argument("--quiet", action="store_true", help="no progress bar")
    one.set_defaults(run=evaluate)


def evaluate(given: argparse.Namespace) -> int:
    """``qru evaluate``."""
    check_output(given.json, [given.model])
    from qru import checkpoint, metrics, models
    from qru.corpora import load_corpus

    corpus = load_corpus(given.corpus, scale=given.scale)
    wanted = given.metrics.split(",") if given.metrics else list(corpus.measurable)
    folders = {role: getattr(given, role) for role in ("model", "retrained") if getattr(given, role)}
    folders = {role: checkpoint.located(name, role) for role, name in folders.items()}
    for role, folder in folders.items():
        checkpoint.check_files(folder, role)
    reader = checkpoint.located(given.tokenizer, "tokenizer") if given.tokenizer else folders["model"]
    if not given.retrained and not given.metrics and "privleak" in wanted:
        wanted.remove("privleak")
        print("PrivLeak is left out: it needs --retrained, a model that never saw the forget set.", file=sys.stderr)
    model, tokenizer = models.load(folders["model"], reader)
    retrained = models.load(folders["retrained"], reader)[0] if given.retrained else None
    scores = metrics.evaluate(model, tokenizer, corpus, retrained=retrained, metrics=wanted, progress=not given.quiet)
    if not put_json(given.json, {name: score.to_dict() for name, score in scores.items()}):
        for name, score in scores.items():
            print(f"{name:<24}{score.value:8.1f}   [{score.ci[0]:.1f}, {score.ci[1]:.1f}]   n = {score.n}")
    return HOLDS


def add_certify(commands) -> None:
    one = add_command(commands, "certify", CERTIFY, CERTIFY_MORE, "that the forgotten stays so, quantized or attacked")
    one.add_argument("run_folders", metavar="RUN", nargs="+", help="folder of a run, or its name in runs/")
    one.add_argument(
        "--quantizers", metavar="NAMES", help="with commas; those of the run unless given, bf16 beside them"
    )
    one.add_argument("--transforms", metavar="NAMES", help="with commas; one of each kind unless given")
    one.add_argument(
        "--metrics", metavar="NAMES",
        help="of forgetting, out of verbmem,knowmem,forget_accuracy; all that the corpus has unless given",
    )  # fmt: skip
    one.add_argument(
        "--forget-ceiling",
        metavar="POINTS",
        type=float,
        default=10.0,
        help="of excess that are allowed; 10 unless given",
    )
    one.add_argument(
        "--utility-floor", metavar="SHARE", type=float, default=0.8,
        help="of the target's utility in bf16 that must be left; 0.8 unless given",
    )  # fmt: skip
    one.add_argument(
        "--json", metavar="FILE", help="write it there instead; - is stdout, and nothing else is printed or written"
    )
    one.add_argument("--html", metavar="FILE", type=Path, help="write the page there instead")
    one.add_argument(
        "--verify", metavar="FILE", help="hold a certificate against the weights of RUN; nothing is scored"
    )
    one.add_argument("--quiet", action="store_true", help="no progress bar")
    one.set_defaults(run=certify)


def certify(given: argparse.Namespace) -> int:
    """``qru certify``."""
    if given.verify:
        from qru.certificate import verify

        against = verify(given.verify, given.run_folders)
        print("\n".join(against) or "The certificate holds, and the weights are those that it is of.")
        return DOES_NOT if against else HOLDS
    for path in (given.json, given.html):
        beside = path is not None and Path(path).name == "certificate.json"  # where it goes by itself
        check_output(path, [] if beside else [str(Path(folder) / "model") for folder in given.run_folders])
    from qru.certificate import certify, run_folder
    from qru.certificate_page import write_page
    from qru.records import write_json

    try:
        found = certify(
            given.run_folders,
            given.quantizers,
            given.forget_ceiling,
            given.utility_floor,
            given.transforms,
            progress=not given.quiet,
            metrics=given.metrics,
        )
    except KeyboardInterrupt:
        print("qru certify: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    code = HOLDS if found["outcome"] == "holds" else DOES_NOT
    homes = [run_folder(folder) for folder in given.run_folders]
    if given.html:
        write_page(found, given.html.expanduser())
    if put_json(given.json, found):
        return code
    if not given.json:
        for home in homes:
            for part in ("model", "adapter"):
                if (home / part).is_dir():
                    write_json(home / part / "certificate.json", found)
    if not given.html:
        for home in homes:
            write_page(found, home / "certificate.html")
    print("\n".join([found["outcome"], "", found["statement"], *found["reasons"]]))
    print(f"\n{given.html or homes[0] / 'certificate.html'}")
    return code


def check_output(path: Path | str | None, inputs: Sequence[str]) -> None:
    """Refuse a file that could not be written, or lies among what is read, before any work is done.

    Args:
        path: ``None`` and ``-`` are no files.
        inputs: folders that are read.

    Raises:
        ValueError: naming it.
    """
    if path is None or str(path) == "-":
        return
    path = Path(path).expanduser().resolve()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file to write.")
    if path.exists() and not path.is_file():  # a file would take the place of the device
        raise ValueError(
            f"{path} is no regular file, and would be replaced by one: give another name, or - for stdout."
        )
    for folder in inputs:
        if path.is_relative_to(Path(folder).expanduser().resolve()):
            raise ValueError(f"{path} lies in {folder}, which is read and never written to: give another place.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): give another place.") from error


def put_json(path: str | None, value: Any) -> bool:
    """Write a value to a file, or to stdout for ``-``; whether that leaves stdout to it alone."""
    if path == "-":
        print(json.dumps(value, ensure_ascii=False, allow_nan=False))
    elif path:
        from qru.records import write_json

        with writing(path):
            write_json(Path(path).expanduser(), value)
    return path == "-"


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Say which file could not be written, such as on a disk that is full.

    Raises:
        ValueError: naming it.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} could not be written ({error.strerror or error}): nothing of it is left.") from error


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same keys; the file appears only when it is complete."""
    from qru.records import atomic_file

    with (
        writing(path),
        atomic_file(path.expanduser()) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
