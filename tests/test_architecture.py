"""Who may import whom, and which library has which home."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (  # later may use earlier
    ("lora_runtime.errors", "lora_runtime.values", "lora_runtime.settings", "lora_runtime.written"),
    (
        "lora_runtime.catalogue",
        "lora_runtime.database",
        "lora_runtime.blobs",
        "lora_runtime.png",
        "lora_runtime.references",
        "lora_runtime.schema",
        "lora_runtime.uploads",
    ),
    (
        "lora_runtime.lora",
        "lora_runtime.accounts",
        "lora_runtime.finetunes",
        "lora_runtime.finetune_rules",
        "lora_runtime.tasks",
        "lora_runtime.deliveries",
    ),
    ("lora_runtime.pipeline", "lora_runtime.pocket"),
    ("lora_runtime.backends",),
    (
        "lora_runtime.requests",
        "lora_runtime.startup",
        "lora_runtime.visitors",
        "lora_runtime.shelf",
        "lora_runtime.snippets",
    ),
    ("lora_runtime.server",),
    ("evaluation",),
    ("lora_runtime.tabs", "evaluation.tabs"),
    ("lora_runtime.__main__", "lora_runtime.commands", "evaluation.commands", "evaluation.__main__", "app"),
)

HOMES = {  # library -> the modules that may import it
    "torch": ("lora_runtime.pipeline", "lora_runtime.pocket", "evaluation.metrics"),
    "diffusers": ("lora_runtime.pipeline", "lora_runtime.pocket"),
    "transformers": ("lora_runtime.pipeline", "lora_runtime.pocket", "evaluation.metrics"),
    "peft": ("lora_runtime.pipeline", "lora_runtime.pocket"),
    "huggingface_hub": ("lora_runtime.pipeline", "lora_runtime.lora.download"),
    "gradio": ("lora_runtime.tabs", "evaluation.tabs", "app"),
    "mcp": ("lora_runtime.tabs.api",),
    "spaces": ("lora_runtime.backends.zerogpu",),
    "fastapi": ("lora_runtime.server",),
    "uvicorn": ("lora_runtime.server",),
    "httpx": ("lora_runtime.backends.remote_http", "lora_runtime.server.outbound"),
    "itsdangerous": ("lora_runtime.server.signing",),
    "sqlalchemy": ("lora_runtime.database", "lora_runtime.schema", "lora_runtime.accounts", "lora_runtime.finetunes",
                   "lora_runtime.tasks", "lora_runtime.deliveries", "evaluation.store", "evaluation.log_store",
                   "evaluation.deletions", "evaluation.presets", "evaluation.schema"),
    "alembic": ("lora_runtime.database",),
    "pandas": ("evaluation.table", "evaluation.report", "evaluation.tabs"),
    "pyarrow": ("evaluation.report",),
    "jinja2": ("evaluation.html_report",),
    "ray": ("evaluation.cluster",),
}  # fmt: skip

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [ROOT / "app.py", *(ROOT / "lora_runtime").rglob("*.py"), *(ROOT / "evaluation").rglob("*.py")]
    if "migrations" not in path.parts
}


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever the import stands; imports for type checkers alone do not count."""
    return tuple(find_imports(ast.parse(path.read_text())))


def find_imports(tree: ast.Module) -> Iterator[str]:
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> int | None:
    """The layer of the longest package that holds `module`."""
    found = [
        (len(package), index) for index, layer in enumerate(LAYERS) for package in layer if within(module, package)
    ]
    return max(found)[1] if found else None


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nobody_imports_from_a_later_layer(module: str) -> None:
    own = layer_of(module)
    if module == "lora_runtime":
        assert not imports(MODULES[module])
        return
    assert own is not None, f"{module} has no layer: give it one"
    for imported in imports(MODULES[module]):
        other = layer_of(imported) if imported in MODULES else None
        assert other is None or other <= own, f"{module} imports {imported}"


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if within(module, "evaluation")])
def test_evaluation_knows_backends_never_the_pipeline(module: str) -> None:
    hidden = ("lora_runtime.server", "lora_runtime.pipeline", "lora_runtime.pocket")
    assert not [name for name in imports(MODULES[module]) if any(within(name, package) for package in hidden)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_libraries_stay_at_home(module: str) -> None:
    for library, homes in HOMES.items():
        if not any(within(module, home) for home in homes):
            assert not [name for name in imports(MODULES[module]) if within(name, library)], f"{module}: {library}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_stay_readable(module: str) -> None:
    lines = MODULES[module].read_text().splitlines()
    assert len(lines) <= 420
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < 80, f"{module}.{node.name} is {node.end_lineno - node.lineno} lines"
