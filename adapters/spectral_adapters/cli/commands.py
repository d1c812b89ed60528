"""The commands: thin, each a few calls of the library."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import spectral_core as sc
from spectral_adapters.cli.factory import load_problem
from spectral_adapters.tables import to_csv, to_markdown, to_rich
from spectral_core.curvature.certificate import Engine
from spectral_core.measuring.directions import Decomposition
from spectral_core.measuring.progress import ProgressCallback
from spectral_core.reporting.text_table import printable
from spectral_core.storage.lone_file import delete_alone

__all__ = ["cli", "run"]

FAILURE, INTERRUPTED = 1, 130


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and turn what can go wrong into an exit code and a sentence."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        cli.main(arguments, prog_name="spectral-core", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:  # usage: exit code 2
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        notes = getattr(stop.__context__ or stop, "__notes__", None) or getattr(
            stop, "__notes__", []
        )
        print("Interrupted.", *notes, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away: nothing more to say
        return FAILURE
    except sc.SpectralError as error:
        if "--debug" in arguments:
            raise
        print(f"Error: {error}", *getattr(error, "__notes__", []), file=sys.stderr)
        return FAILURE
    except Exception as error:
        if "--debug" in arguments:
            raise
        text = f"Error: {type(error).__name__}: {error} (--debug shows where)"
        print(text, *getattr(error, "__notes__", []), file=sys.stderr)
        return FAILURE
    return 0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sc.__version__, prog_name="spectral-core")
def cli() -> None:
    """Measure how curvature follows the gradient, layer by layer."""


_debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")


@cli.command()
@click.option("--output", default="spectral-demo", show_default=True, help="Folder to write to.")
@click.option("--seed", default=0, show_default=True, help="Of data, weights and order.")
@_debug
def demo(output: str, seed: int, debug: bool) -> None:
    """Train two small networks on real digits, measure, plot, and say what was found."""
    from spectral_adapters.demo.run import find_sentences, run_demo

    console = _console()
    with _progress() as progress:
        runs = run_demo(output, seed=seed, progress=progress, progress_callback=console.print)
    for result in runs:
        console.rule(result.name)
        _show(result.report, console)
    for result in runs:
        console.print(*(str(path) for path in result.files), sep="\n", highlight=False)
    console.print()
    for sentence in find_sentences(runs):
        console.print(sentence, highlight=False)


@cli.command()
@click.argument("target", metavar="PATH_OR_MODULE:FACTORY")
@click.option("--weights", help="Weights file (safetensors, or torch tensors) for the factory.")
@click.option("--layers", multiple=True, help="Glob of layer names; may be repeated.")
@click.option("--top-k", default=20, show_default=True, help="Directions per layer.")
@click.option("--curvature", type=click.Choice(["hessian", "ggn"]), default="hessian",
              show_default=True, help="Exact Hessian, or its Gauss-Newton part.")  # fmt: skip
@click.option("--engine", type=click.Choice(get_args(Engine)), default="auto",
              show_default=True, help="How curvatures are computed.")  # fmt: skip
@click.option("--svd", type=click.Choice(get_args(Decomposition)), default="exact",
              show_default=True, help="How the directions are found.")  # fmt: skip
@click.option("--decompose", is_flag=True, help="Split α into β + φ + κ + ν.")
@click.option("--fisher-type", "--delta", "fisher_type", default="ggn",
              type=click.Choice(["ggn", "fisher-mc", "empirical"]),
              show_default=True, help="Output gradients of the Kronecker factors.")  # fmt: skip
@click.option("--kfac-approx", "--sharing", "kfac_approx", default="expand",
              type=click.Choice(["expand", "reduce"]),
              show_default=True, help="How shared positions enter the factors.")  # fmt: skip
@click.option(
    "--sampling", type=click.IntRange(min=4), help="Groups of samples for sampling errors."
)
@click.option("--output", default="report.json", show_default=True, help="Report to write.")
@click.option("--plots", help="Folder for the figures.")
@click.option("--fresh", is_flag=True, help="Forget an interrupted measurement.")
@_debug
def measure(
    target: str,
    weights: str | None,
    layers: tuple[str, ...],
    top_k: int,
    curvature: str,
    engine: Engine,
    svd: Decomposition,
    decompose: bool,
    fisher_type: str,
    kfac_approx: str,
    sampling: int | None,
    output: str,
    plots: str | None,
    fresh: bool,
    debug: bool,
) -> None:
    """Measure the problem that FACTORY returns.

    FACTORY is a function in a Python file or module. It returns a CurvatureProblem, or a tuple
    (model, loss_fn, batches). Interrupted, the same command resumes.
    """
    journal = Path(f"{output}.journal")
    if fresh:
        delete_alone(journal)
    problem = load_problem(target, weights)
    with _resumable(journal), _progress() as progress:
        report = sc.measure(
            problem,
            list(layers) or "*",
            top_k=top_k,
            curvature=curvature,  # type: ignore[arg-type]
            engine=engine,
            svd=svd,
            decompose=decompose,
            fisher_type=fisher_type,  # type: ignore[arg-type]
            kfac_approx=kfac_approx,  # type: ignore[arg-type]
            sampling=sampling,
            progress=progress,
            resume=journal,
        )
    report.save(output)
    journal.unlink(missing_ok=True)  # another process may have resumed it, and be done as well
    _show(report, _console())
    print(f"\n{output}")
    if plots:
        _plot(report, plots)


@cli.command()
@click.argument("target", metavar="PATH_OR_MODULE:FACTORY")
@click.option("--weights", help="Weights file (safetensors, or torch tensors) for the factory.")
@click.option("--layers", multiple=True, help="Glob of layer names; may be repeated.")
@click.option("--sizes", multiple=True, type=int, help="Number of terms; may be repeated.")
@click.option("--top-k", default=20, show_default=True, help="Directions per layer.")
@click.option("--output", default="convergence.json", show_default=True, help="Result to write.")
@click.option("--plots", help="Folder for the figures.")
@_debug
def converge(
    target: str,
    weights: str | None,
    layers: tuple[str, ...],
    sizes: tuple[int, ...],
    top_k: int,
    output: str,
    plots: str | None,
    debug: bool,
) -> None:
    """Measure against the sample size the problem that FACTORY returns, see measure."""
    problem = load_problem(target, weights)
    with _progress() as progress:
        found = sc.converge(
            problem, list(layers) or "*", sizes=sizes or None, top_k=top_k, progress=progress
        )
    found.save(output)
    print(found, output, sep="\n\n")
    if plots:
        from spectral_adapters.plots import save_convergence_figures

        print(*save_convergence_figures(found, plots), sep="\n")


@cli.command()
@click.argument("report")
@click.option("--format", "form", type=click.Choice(["table", "markdown", "csv", "json"]),
              default="table", show_default=True, help="How to print it.")  # fmt: skip
@_debug
def show(report: str, form: str, debug: bool) -> None:
    """Print a saved REPORT."""
    loaded = sc.SpectralReport.load(report)
    if form == "table":
        _show(loaded, _console())
    elif form == "json":
        print(Path(report).read_text(encoding="utf-8"), end="")
    else:
        print((to_markdown if form == "markdown" else to_csv)(loaded), end="\n" * (form != "csv"))


@cli.command()
@click.argument("report")
@_debug
def explain(report: str, debug: bool) -> None:
    """Say for each layer of a saved REPORT which term makes its α.

    The report must have been measured with --decompose.
    """
    decomposed = sc.SpectralReport.load(report).decomposed()
    if not decomposed:
        raise sc.ReportError(
            f"{report}: no layer has a decomposition; measure again with --decompose."
        )
    for spectrum in decomposed:
        print(printable(str(sc.explain(spectrum))))


@cli.command()
@click.argument("report")
@click.option("--output", default="figures", show_default=True, help="Folder to write to.")
@_debug
def plot(report: str, output: str, debug: bool) -> None:
    """Draw the figures of a saved REPORT."""
    _plot(sc.SpectralReport.load(report), output)


def _plot(report: sc.SpectralReport, folder: str) -> None:
    from spectral_adapters.plots import save_figures

    for path in save_figures(report, folder):
        print(path)


def _console() -> Console:
    # In a pipe a table keeps its columns, however wide; a terminal wraps by itself.
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 250, emoji=False)


def _show(report: sc.SpectralReport, console: Console) -> None:
    if not console.is_terminal:
        print(report)
        return
    head, _, *rest = report.summary().split("\n\n")  # the second part is the plain table
    console.print(head, highlight=False, markup=False)
    console.print(to_rich(report))
    if report.decomposed():
        caption, _, *rest = rest
        console.print(caption, highlight=False, markup=False)
        console.print(to_rich(report, terms=True))
    for part in rest:
        console.print(part, highlight=False, markup=False)


@contextmanager
def _resumable(journal: Path) -> Iterator[None]:
    """Say, when a measurement is cut off, that nothing finished is lost."""
    try:
        yield
    except BaseException as error:
        if journal.exists() and not isinstance(error, sc.ReportError):
            error.add_note(f"Finished layers are in {journal}; the same command resumes.")
        raise


@contextmanager
def _progress() -> Iterator[ProgressCallback | bool]:
    """Yield a rich progress bar on a terminal, silence in a pipe."""
    if not sys.stderr.isatty():
        yield False
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring")

        def advance(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name or "measured")

        yield advance
