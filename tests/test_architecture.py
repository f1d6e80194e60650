"""Who may import whom, and which library has which home."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

ROOMS = (  # later may use earlier; a folder that is not named here has the place of the one it is in
    (
        "lora_runtime.errors",
        "lora_runtime.values",
        "lora_runtime.batches",
        "lora_runtime.events",
        "lora_runtime.settings",
        "lora_runtime.written",
        "lora_runtime.catalogue",
        "lora_runtime.png",
        "lora_runtime.references",
    ),
    ("lora_runtime.storage", "lora_runtime.lora"),
    ("lora_runtime.registry", "lora_runtime.pipeline", "lora_runtime.pocket"),
    ("lora_runtime.backends",),
    ("lora_runtime",),
    ("lora_runtime.server",),
    ("lora_runtime.commands", "lora_runtime.__main__"),
    ("evaluation",),
    ("evaluation.tabs", "evaluation.commands", "evaluation.voting", "evaluation.__main__"),
    ("app",),
)

HOMES = {  # library -> the modules that may import it
    "torch": ("lora_runtime.pipeline", "lora_runtime.pocket", "evaluation.judge.metrics"),
    "diffusers": ("lora_runtime.pipeline", "lora_runtime.pocket"),
    "transformers": ("lora_runtime.pipeline", "lora_runtime.pocket", "evaluation.judge.metrics"),
    "peft": ("lora_runtime.pipeline", "lora_runtime.pocket"),
    "huggingface_hub": ("lora_runtime.pipeline", "lora_runtime.lora.download", "lora_runtime.judges"),
    "gradio": ("evaluation.tabs", "app"),
    "mcp": ("evaluation.tabs.program_finetunes",),
    "spaces": ("lora_runtime.backends.zerogpu",),
    "fastapi": ("lora_runtime.server",),
    "uvicorn": ("lora_runtime.server",),
    "httpx": ("lora_runtime.backends.remote_http", "lora_runtime.server.outbound"),
    "itsdangerous": ("lora_runtime.server.access",),
    "sqlalchemy": (
        "lora_runtime.storage",
        "lora_runtime.registry",
        "lora_runtime.server.claims",
        "lora_runtime.server.room",
        "lora_runtime.server.tasks",
        "lora_runtime.server.webhooks",
        "evaluation.store",
        "evaluation.log",
        "evaluation.report.columns",
    ),
    "alembic": ("lora_runtime.storage",),
    "pandas": ("evaluation.report", "evaluation.log", "evaluation.tabs"),
    "pyarrow": ("evaluation.report",),
    "jinja2": ("evaluation.report", "evaluation.tabs"),
    "ray": ("lora_runtime.backends.cluster",),
}

TAG = re.compile(r"(?<!\?P)</?[a-z][a-z0-9]*[ >/]")

MAX_LINES = 420
MAX_FUNCTION_LINES = 80

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


def room_of(module: str) -> int:
    """The room of the longest name in `ROOMS` that holds `module`."""
    return max((len(name), number) for number, room in enumerate(ROOMS) for name in room if within(module, name))[1]


def test_no_import_runs_back_up() -> None:
    backwards = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in imports(path)
        if imported in MODULES and room_of(imported) > room_of(module)
    ]
    assert not backwards


def test_evaluation_knows_backends_never_the_pipeline() -> None:
    hidden = ("lora_runtime.server", "lora_runtime.pipeline", "lora_runtime.pocket")
    judging = [m for m in MODULES if within(m, "evaluation") and not within(m, "evaluation.tabs")]
    assert not [
        f"{module} imports {imported}"
        for module in judging
        for imported in imports(MODULES[module])
        if any(within(imported, name) for name in hidden)
    ]


def test_libraries_stay_at_home() -> None:
    strays = [
        f"{module} imports {imported}"
        for library, homes in HOMES.items()
        for module, path in MODULES.items()
        for imported in imports(path)
        if within(imported, library) and not any(within(module, home) for home in homes)
    ]
    assert not strays


def test_files_stay_readable() -> None:
    long = []
    for module, path in MODULES.items():
        text = path.read_text()
        if (count := len(text.splitlines())) > MAX_LINES:
            long.append(f"{module} has {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno
                if lines >= MAX_FUNCTION_LINES:
                    long.append(f"{module}.{node.name} is {lines} lines")
    assert not long


def test_html_stands_in_templates() -> None:
    def has_tags(path: Path) -> bool:
        texts = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr))
        parts = (part.value for text in texts for part in text.values if isinstance(part, ast.Constant))
        return any(TAG.search(str(part)) for part in parts)

    found = {module for module, path in MODULES.items() if has_tags(path)}
    assert not found
