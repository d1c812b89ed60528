"""Every check of the project; `nox -l` lists them, docs/developers.md explains them."""

import os
import shutil
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests", "parity", "oracles", "embedding", "docs", "build"]

ROOT = Path(__file__).parent
# Installed first and pinned, so that pip can take a small CPU build where an index or a folder of
# wheels offers one; a range would pull the newest build with gigabytes of GPU libraries.
TORCH = os.environ.get("SPECTRAL_TORCH", "torch==2.13.0")
TEST = ["pytest>=8.3", "hypothesis>=6.120", "mpmath>=1.3", "scipy>=1.14"]
TEST += ["pytest-xdist>=3.6", "pytest-timeout>=2.3"]
# Files side by side, one thread each; more would fill the memory of a small machine under JAX.
# `.ci/run` runs sessions side by side instead, with one process each.
PROCESSES = os.environ.get("SPECTRAL_PROCESSES", "auto")
TOGETHER = ["-n", PROCESSES, "--maxprocesses=4", "--dist=loadfile"]
TOGETHER += ["--timeout=900", "--timeout-method=thread"]  # what hangs is named
TOGETHER += ["--durations=20", "--durations-min=5"]
# Small arrays take longer to compile for than to compute: XLA skips what only makes programs fast.
# `embedding`, `oracles`, `properties` and `versions` run as users compile.
COMPILED_FAST = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
}
OLDEST = ["numpy==2.3.0", "array-api-compat==1.12.0", "array-api-extra==0.8.0"]
# curvlinops asks for torchvision (through backpack) without using it here, and torchvision would
# replace torch; so these come without their dependencies.
ORACLES = [
    "curvlinops-for-pytorch",
    "backpack-for-pytorch",
    "einconv",
    "unfoldNd",
    "linear_operator",
]
# Optimizer libraries that the examples call `precondition` from.
EMBEDDERS = ["heavyball>=3.2", "pytorch_optimizer>=4.1", "optax>=0.2.8"]
# Libraries whose models the JAX backend is tested with.
JAX_MODELS = ["flax>=0.12", "equinox>=0.13", "dm-haiku>=0.0.14"]
# Libraries that the JAX benchmark is held against.
JAX_PEERS = ["kfac-jax>=0.0.8", "matfree>=0.6"]
# The newest JAX that kfac-jax runs with.
KFAC_JAX = ["kfac-jax==0.0.8", "jax==0.9.0", "jaxlib==0.9.0"]

# Statements of the theory about networks, which the backends' own suites leave out.
NETWORK_STATEMENTS = [
    "tests/backends/arrays/test_network_properties.py",
    "tests/backends/test_network_statements.py",
]

# Sessions with PyTorch and JAX, which `together` runs in one environment.
PARITY = [*TEST, "safetensors>=0.5", ".[torch,jax]"]
EMBEDDING = [*TEST, *EMBEDDERS, ".[torch,optax]"]
GATE = [*TEST, "array-api-strict>=2.3", ".[torch,optax]"]

# Sessions that `pages` runs in one environment.
TYPES = ["mypy>=1.18", ".[demo,optax]"]
DOCS = ["sphinx>=8", "furo", "myst-parser", "pytest>=8.3", "pytest-markdown-docs"]
DOCS += [".[demo,tables,optax]"]

# What `quick` runs.
QUICK = ["tests/unit", "tests/golden", "tests/networks", "tests/test_docstrings.py"]

BACKENDS = ["numpy", "array-api-strict", "torch", "jax", "cupy", "oldest"]

# Of Python, those at hand; of libraries: oldest, newest, and which tests are of them.
PYTHONS = [v for v in ("3.11", "3.12", "3.13") if shutil.which(f"python{v}")]
VERSIONS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "arrays": (
        ["array-api-strict==2.3"],
        ["numpy", "array-api-compat", "array-api-extra", "array-api-strict"],
        ["--namespaces=numpy,array-api-strict", "tests/unit", "tests/backends/arrays",
         "tests/adapters/test_array_optim.py"],
    ),
    "torch": (
        ["torch==2.9.1"],
        [TORCH, "numpy"],
        ["--namespaces=torch", "tests/unit", "tests/backends/torch",
         "tests/adapters/test_torch_optim.py", "tests/adapters/test_recorded_update.py",
         "tests/adapters/test_saved_state.py", "tests/adapters/test_step_surroundings.py"],
    ),
    "jax": (
        ["jax==0.8.0", "jaxlib==0.8.0", "optax==0.2.5"],
        ["jax", "optax", "numpy"],
        ["--namespaces=jax", "tests/unit/test_namespaces.py", "tests/backends/jax",
         "tests/adapters/test_optax.py"],
    ),
}  # fmt: skip
AGES = [(library, age) for library in VERSIONS for age in ("oldest", "newest", "pre")]
AGES.remove(("torch", "pre"))  # its pre-releases are on an index of their own


@nox.session
def demo(session: nox.Session) -> None:
    """Train two small networks on real digits, measure every layer, plot."""
    session.install(TORCH)
    session.install(".[demo]")
    session.run("spectral-core", "demo", *(session.posargs or ["--output", "spectral-demo"]))


@nox.session
@nox.parametrize("backend", BACKENDS, ids=BACKENDS)
def tests(session: nox.Session, backend: str) -> None:
    """Run the test suite of one backend; torch also runs the measurements and the adapters."""
    arrays = ["tests/backends/arrays", "tests/adapters/test_array_optim.py"]
    suites, apart = ["tests/unit", "tests/golden"], []
    if backend == "torch":
        session.install(TORCH)
        session.install(*TEST, "einops", "opt-einsum", "tqdm", "pandas", "polars")
        session.install("--no-deps", *ORACLES)
        session.install(".[demo,torch]")
        # The session `parity` runs the first, and the GPU gate the others, also dry.
        suites = ["tests", "--ignore=tests/backends/parity"]
        suites += [f"--ignore=tests/gpu/test_{name}_device.py" for name in ("torch", "jax", "cupy")]
    elif backend == "jax":
        session.install(*TEST, *JAX_MODELS, "orbax-checkpoint>=0.11", ".[jax,optax]")
        suites += ["tests/test_docstrings.py"]
        # In processes of their own: JAX compiles the slower the more it has compiled before.
        apart = [["tests/robustness/soak", "tests/networks", *NETWORK_STATEMENTS]]
        apart += [["tests/backends/jax", "tests/adapters/test_optax.py"]]
    elif backend == "cupy":
        if shutil.which("nvidia-smi") is None:
            session.skip("no NVIDIA driver on this machine; the GPU gate runs these tests with one")
        session.install(*TEST, ".[cupy]")
        suites += arrays
    elif backend == "array-api-strict":
        session.install(*TEST, "array-api-strict>=2.3", ".")
        suites += arrays
    elif backend == "oldest":
        session.install(*TEST, *OLDEST, ".")
        suites += ["--combinations=few"]
    else:
        session.install(*TEST, ".")
        suites += [*arrays, "tests/networks", "tests/robustness/soak"]
    namespace = "numpy" if backend == "oldest" else backend
    # The arrays are small: threads only wait for each other, on shared cores for long.
    env = {"OMP_NUM_THREADS": "1"} | (COMPILED_FAST if backend == "jax" else {})
    for part in (suites, *apart):
        session.run(
            "pytest", f"--namespaces={namespace}", *TOGETHER, *part, *session.posargs, env=env,
            success_codes=[0, 5] if apart and session.posargs else [0],  # 5: -k picked none of them
        )  # fmt: skip


@nox.session(reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Check in less than a minute what breaks most often; `-- torch jax` for these backends too."""
    backends = session.posargs
    if unknown := set(backends) - {"torch", "jax"}:
        session.error(f"{sorted(unknown)}: name torch, jax or both, or nothing")
    if "torch" in backends:
        session.install(TORCH)
    extras = f"[{','.join(['cli', *backends])}]"
    session.install("ruff>=0.14", "import-linter>=2.1", *TEST, "-e", f".{extras}")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run(
        "pytest", "-q", "--namespaces=numpy", "--combinations=few", *TOGETHER, *QUICK,
        env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@nox.session(python=PYTHONS)
@nox.parametrize(["library", "age"], AGES, ids=["-".join(pair) for pair in AGES])
def versions(session: nox.Session, library: str, age: str) -> None:
    """Run a library's tests with its oldest, newest or next versions, and record that they ran."""
    oldest, newest, tests = VERSIONS[library]
    asked = {"oldest": OLDEST + oldest, "newest": newest, "pre": ["--pre", "--upgrade", *newest]}
    session.install(*asked[age], *TEST, ".")
    session.run(
        "python", "tools/versions.py", "run", library, "--age", age, "--", *tests, *session.posargs,
        env={"OMP_NUM_THREADS": "1"}, success_codes=[0, 1] if age == "pre" else [0],
    )  # fmt: skip
    session.run("python", "tools/versions.py", "table")


@nox.session
def properties(session: nox.Session) -> None:
    """Run the tests of numbered statements and make docs/properties.md of what passed."""
    session.install(TORCH)
    session.install(*TEST, "array-api-strict>=2.3", ".[torch,jax]")
    folder = Path(session.create_tmp()).resolve()
    files = []
    for library in ("numpy", "array-api-strict", "torch", "jax"):
        suites = ["tests/unit", "tests/backends/arrays"]
        if library in ("torch", "jax"):
            suites += ["tests/backends/test_network_statements.py", f"tests/backends/{library}"]
        if library == "torch":
            suites.append("tests/backends/parity")
        files.append(str(folder / f"{library}.jsonl"))
        session.run(
            "pytest", "-m", "statement", f"--namespaces={library}", f"--statements={files[-1]}",
            "--combinations=all", *TOGETHER, *suites, *session.posargs,
            env={"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    session.run("python", "docs/make_properties.py", *files)


@nox.session
def parity(session: nox.Session) -> None:
    """Hold the backends against one protocol, and against each other."""
    session.install(TORCH)
    session.install(*PARITY)
    run_parity(session, *session.posargs)


def run_parity(session: nox.Session, *options: str) -> None:
    command, env = ["pytest", *TOGETHER, "tests/backends/parity"], {"OMP_NUM_THREADS": "1"}
    if options:
        session.run(*command, *options, env=env | COMPILED_FAST)
        return
    session.run(*command, "-k", "not resnet20", env=env | COMPILED_FAST)
    session.run(*command, "-k", "resnet20", env=env)  # computes for longer than it compiles


@nox.session
def oracles(session: nox.Session) -> None:
    """Hold JAX's curvatures and factors against kfac-jax, which needs an older JAX."""
    session.install(*TEST, *KFAC_JAX, ".")
    env = {"OMP_NUM_THREADS": "1"}
    session.run("pytest", "tests/oracles/test_kfac_jax.py", *session.posargs, env=env)


@nox.session
def coverage(session: nox.Session) -> None:
    """Report which lines and branches of the core the tests run: docs/results/coverage.md."""
    session.install(TORCH)
    session.install(*TEST, "pytest-cov>=6", ".[demo,torch]")
    suites = [
        "tests/unit",
        "tests/backends/arrays",
        "tests/backends/torch",
        "tests/robustness/hostile",
    ]
    session.run(
        "pytest", "--namespaces=numpy,torch", *TOGETHER,
        "--cov", "--cov-report=json", *suites,
        "tests/adapters/test_array_optim.py", "tests/adapters/test_torch_optim.py",
        # It traces by itself.
        "--ignore=tests/robustness/hostile/test_interruption.py",
        *session.posargs, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    session.run("python", "tools/coverage_report.py", "coverage.json")


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the core in every way that mutmut knows, and report what no test notices: hours."""
    core = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    session.install(TORCH)
    session.install(*TEST, *core, "array-api-strict>=2.3", "mutmut>=3.8", "click", "rich")
    # Not the project itself: mutants would not be found before it.
    paths = os.pathsep.join(str(ROOT / part) for part in ("backends", "adapters"))
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    # It writes the mutants and finds out which tests reach them; no name begins like this.
    session.run("mutmut", "run", "none of them", env=env, success_codes=[0, 1])
    session.run("python", "-P", "tools/mutants/run.py", "mutants", *session.posargs, env=env)
    session.run("python", "tools/mutants/report.py", "mutants")


@nox.session
def soak(session: nox.Session) -> None:
    """Make 10,000 steps and 200 measurements a process; nothing may grow. Linux."""
    session.install(TORCH)
    session.install(".[torch,optax]")
    session.run(
        "python", "tests/robustness/soak/soaks.py", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session
def embedding(session: nox.Session) -> None:
    """Run `precondition` inside other optimizers, and that for Optax beside PyTorch's."""
    session.install(TORCH)
    session.install(*EMBEDDING)
    run_embedding(session, *session.posargs)


def run_embedding(session: nox.Session, *options: str) -> None:
    session.run("pytest", "tests/test_examples.py", "-k", "inside", *options)
    session.run("pytest", "tests/adapters/test_optax.py", "-k", "torch", *options)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the GPU gate; `nox -s gpu -- --dry` for the same code on a CPU, in small."""
    session.install(TORCH)
    session.install(*GATE)
    if "--dry" not in session.posargs:
        session.install(".[cupy]")
    run_gate(session, *session.posargs)


def run_gate(session: nox.Session, *options: str) -> None:
    output = session.create_tmp()
    env = {"PYTHON": "python", "OMP_NUM_THREADS": "1"}
    session.run(
        "bash", "tests/gpu/run.sh", "--output", str(Path(output) / "gate"), *options,
        env=env | (COMPILED_FAST if "--dry" in options else {}), external=True,
    )  # fmt: skip


@nox.session
def together(session: nox.Session) -> None:
    """Run parity, embedding and the dry GPU gate in one environment, as `.ci/run` does."""
    session.install(TORCH)
    session.install(*PARITY, *EMBEDDING, *GATE)
    run_parity(session)
    run_embedding(session)
    run_gate(session, "--dry")


@nox.session
def golden(session: nox.Session) -> None:
    """Compare reports and optimizer states with those of a commit, to the byte; `-- COMMIT`."""
    if len(session.posargs) != 1:
        session.error("name the commit to compare with: nox -s golden -- main")
    folder = Path(session.create_tmp()).resolve()
    then = folder / "then"
    session.run("git", "worktree", "prune", external=True)
    session.run(
        "git", "worktree", "add", "--force", "--detach", str(then), *session.posargs, external=True
    )
    session.install(TORCH)
    session.install("array-api-compat", "array-api-extra", "jax>=0.8", "optax>=0.2.5")
    try:
        for name, tree in (("then", then), ("now", ROOT)):
            paths = [str(tree / part) for part in ("", "backends", "adapters")]
            env = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
            shutil.rmtree(folder / f"record-{name}", ignore_errors=True)
            session.run("python", "tools/golden/record.py", str(folder / f"record-{name}"), env=env)
    finally:
        session.run("git", "worktree", "remove", "--force", str(then), external=True)
    records = [str(folder / f"record-{name}") for name in ("then", "now")]
    session.run("diff", "--recursive", "--brief", *records, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and the direction of imports."""
    session.install("ruff>=0.14", "import-linter>=2.1", "-e", ".[cli]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly."""
    session.install(TORCH)
    session.install(*TYPES)
    session.run("mypy")


@nox.session
def pages(session: nox.Session) -> None:
    """Run types and docs in one environment, as `.ci/run` does."""
    session.install(TORCH)
    session.install(*TYPES, *DOCS)
    session.run("mypy")
    run_docs(session)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, warnings as errors, and run every Python block of it."""
    session.install(TORCH)
    session.install(*DOCS)
    run_docs(session)


def run_docs(session: nox.Session) -> None:
    with session.chdir(session.create_tmp()):  # the blocks write files
        session.run(
            "pytest",
            "--markdown-docs",
            "-p",
            "no:cacheprovider",
            f"--ignore={ROOT / 'docs' / 'examples'}",
            str(ROOT / "README.md"),
            str(ROOT / "docs"),
            env=COMPILED_FAST,
        )
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist, compare with the tree, install each and use it elsewhere."""
    session.install("build")
    out = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out), silent=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    session.run("python", str(ROOT / "tools" / "compare_wheel.py"), str(wheel), str(ROOT))
    for archive in (wheel, sdist):
        # Clean: the smoke test must see nothing but the archive and its core dependencies.
        session.run("python", "-m", "venv", "--clear", str(out / "venv"))
        python = out / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        session.run(str(python), "-m", "pip", "install", "-q", str(archive), external=True)
        shutil.copy(ROOT / "tools" / "smoke.py", out)  # its own folder is what it can import from
        with session.chdir(out):
            session.run(str(python), "smoke.py", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks; `nox -s bench -- --quick` for small ones."""
    session.install(TORCH)
    session.install(
        "scipy", "tqdm", "einops", "opt-einsum", "safetensors", *JAX_PEERS, ".[torch,optax]"
    )
    session.install("--no-deps", *ORACLES, "pyhessian")
    for script in sorted((ROOT / "tests" / "benchmarks").glob("bench_*.py")):
        session.run("python", str(script), *session.posargs)
