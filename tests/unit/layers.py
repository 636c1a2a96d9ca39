# SPDX-License-Identifier: Apache-2.0
"""Who may import whom in `vllm_epd`: the table, and a checker that reads imports without running them."""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "vllm_epd"


@dataclass(frozen=True, slots=True)
class Layer:
    """Modules with the same rights.

    Attributes:
        modules: dotted names below the package, each with all that lies in it; the longest match decides.
        above: names of the layers that it may import.
        third_party: what else it may import, beside the standard library.
        deferred: those of `third_party` that it may import inside functions only.
    """

    name: str
    modules: tuple[str, ...]
    above: frozenset[str] = frozenset()
    third_party: frozenset[str] = frozenset()
    deferred: frozenset[str] = frozenset()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYERS = (
    Layer("words", ("types", "errors", "topology")),
    # Settings of a process.
    Layer("process", ("memory",)),
    Layer("config", ("config",), _words("words"), _words("omegaconf")),
    Layer(
        "pure",
        (
            "roles.lifecycle",
            "router.capacity",
            "router.choosing",
            "router.costs",
            "router.inline",
            "router.irp",
            "router.line",
            "router.media",
            "router.named",
            "router.ordering",
            "router.policies",
            "router.prefixes",
            "router.rates",
            "router.timeline",
            "transfer.handshake",
            "transfer.codec_guard",
            "transfer.keys",
            "controller.policy",
            "transfer.pages",
            "transfer.pool",
            "transfer.shard",
            "transfer.wire",
        ),
        _words("words config"),
        _words("numpy msgspec optuna"),
    ),
    # Simulates with the very deciders of the router.
    Layer("planner", ("planner",), _words("words config pure"), _words("numpy msgspec optuna")),
    Layer(
        "commands",
        ("planner.commands",),
        _words("words config pure planner"),
        _words("msgspec rich matplotlib"),
    ),
    Layer(
        "measure",
        ("planner.measure",),
        _words("words config pure planner"),
        _words("numpy msgspec aiohttp prometheus_client rich"),
    ),
    Layer(
        "device",
        ("kernels", "ops", "transfer"),
        _words("words config pure"),
        _words("numpy msgspec zmq torch cupy nixl"),
    ),
    Layer("doctor", ("doctor",), _words("words config pure device"), _words("torch zmq rich")),
    # HTTP for clients; knows nothing of what is served.
    Layer("web", ("router.web",), _words("words"), _words("msgspec httptools multidict")),
    Layer(
        "service",
        ("router", "controller", "launch"),
        _words("words process config pure web"),
        _words(
            "numpy msgspec omegaconf aiohttp blake3 httptools uvloop multidict yarl prometheus_client opentelemetry"
            " rich"
        ),
    ),
    Layer(
        "vllm",
        ("compat", "connectors", "roles"),
        _words("words config pure device"),
        _words(
            "numpy msgspec zmq torch vllm transformers huggingface_hub aiohttp fastapi starlette pydantic"
            " prometheus_client"
        ),
    ),
    Layer(
        "demo",
        ("demo",),
        _words("words"),
        _words("numpy safetensors tokenizers torch transformers PIL"),
        deferred=_words("torch transformers PIL"),
    ),
    # Copied into a model's folder and run from there by transformers.
    Layer("remote code", ("demo.remote_code",), third_party=_words("numpy torch transformers PIL")),
    # Names the modules of the vLLM side by string, so that importing it loads none of them.
    Layer("plugin", ("plugin",), _words("words"), _words("vllm"), deferred=_words("vllm")),
    Layer(
        "cli",
        ("cli",),
        _words("words config pure planner commands measure service demo doctor"),
        _words("rich omegaconf"),
    ),
)

# Layers that another one may import.
IMPORTED = frozenset[str]().union(*(layer.above for layer in LAYERS))

# A layer's folders do not import each other, but for these.
BESIDE = frozenset(
    {
        ("ops", "kernels"),
        ("transfer", "ops"),
        ("connectors", "compat"),
        ("roles", "compat"),
        ("roles", "connectors"),
        ("types", "errors"),
        ("topology", "errors"),
        ("topology", "types"),
    }
)

# Not services, but tools that a launcher may take a model from.
ALSO = frozenset({("launch", "demo")})

# Each imported in these files alone.
ONLY_IN = {
    "nixl": ("transfer.nixl",),
    "cupy": ("transfer.cuda_ipc", "kernels.cuda"),
    f"{PACKAGE}._C": ("ops",),
}


@dataclass(frozen=True, slots=True)
class Import:
    """One name that one module imports."""

    importer: str
    imported: str
    line: int
    in_function: bool
    typing_only: bool


def find_modules(root: Path) -> dict[str, Path]:
    """Dotted names of all modules of the package in `root`, each with its file."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_imports(modules: Mapping[str, Path]) -> list[Import]:
    """All imports of the modules, those inside functions and for type checkers too."""
    found = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text(), filename=str(path))
        for node, in_function, typing_only in _walk(tree, in_function=False, typing_only=False):
            found += [
                Import(module, name, node.lineno, in_function, typing_only) for name in _imported_names(node, modules)
            ]
    return found


def _walk(
    node: ast.AST, *, in_function: bool, typing_only: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function, typing_only
            continue
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        yield from _walk(child, in_function=in_function or function, typing_only=typing_only or guarded)


def _imported_names(node: ast.Import | ast.ImportFrom, modules: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    source = "." * node.level + (node.module or "")
    for alias in node.names:
        full = f"{source}.{alias.name}"
        yield full if full in modules or full in ONLY_IN else source


def layer_of(module: str) -> Layer | None:
    """The layer that a module of the package belongs to, None if the table has no place for it."""
    name = module.removeprefix(f"{PACKAGE}.")
    fits = [(len(prefix), layer) for layer in LAYERS for prefix in layer.modules if _within(name, prefix)]
    return max(fits, key=lambda fit: fit[0])[1] if fits else None


def violations(root: Path) -> list[str]:
    """What in the package below `root` breaks the table, one line each."""
    modules = find_modules(root)
    homeless = [f"{module}: no layer" for module in modules if module != PACKAGE and layer_of(module) is None]
    found = [f"{use.importer}:{use.line}: {why}" for use in read_imports(modules) for why in _faults(use, modules)]
    return homeless + found


def _faults(use: Import, modules: Mapping[str, Path]) -> Iterator[str]:
    if use.imported.startswith("."):
        yield f"relative import of {use.imported}"
        return
    owners = ONLY_IN.get(use.imported) or ONLY_IN.get(use.imported.split(".")[0])
    if owners:
        if use.importer not in {f"{PACKAGE}.{owner}" for owner in owners}:
            yield f"{use.imported} belongs to {' and '.join(owners)} alone"
        return
    for layer in _layers_to_satisfy(use, modules):
        fault = _fault(use, layer)
        if fault:
            yield fault


def _layers_to_satisfy(use: Import, modules: Mapping[str, Path]) -> Iterator[Layer | None]:
    """The importer's own layer, and for a package's file those of the modules whose import runs it."""
    yield layer_of(use.importer)
    if use.in_function or use.typing_only or modules[use.importer].name != "__init__.py":
        return
    inside = {layer_of(module) for module in modules if _within(module, use.importer)} - {layer_of(use.importer)}
    yield from (layer for layer in inside if layer and layer.name in IMPORTED)


def _fault(use: Import, layer: Layer | None) -> str | None:
    top = use.imported.split(".")[0]
    if top in sys.stdlib_module_names:
        return None
    if use.importer == PACKAGE:
        return f"the package itself imports {use.imported}"
    if layer is None or use.imported == PACKAGE:
        return None
    if top != PACKAGE:
        return _third_party_fault(use, layer, top)
    return None if _may_import(use, layer) else f"{layer.name} may not import {use.imported}"


def _third_party_fault(use: Import, layer: Layer, top: str) -> str | None:
    if top not in layer.third_party:
        return f"{layer.name} may not import {top}"
    if top in layer.deferred and not (use.in_function or use.typing_only):
        return f"{layer.name} may import {top} inside functions only"
    return None


def _may_import(use: Import, layer: Layer) -> bool:
    target = layer_of(use.imported)
    pair = (_folder(use.importer), _folder(use.imported))
    if target is None or target.name in layer.above or pair in ALSO:
        return True
    return target is layer and (pair[0] == pair[1] or pair in BESIDE)


def _folder(module: str) -> str:
    return module.split(".")[1]


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def find_cycle(root: Path) -> list[str] | None:
    """Modules of one import cycle, None where there is none; imports for type checkers alone do not count."""
    modules = find_modules(root)
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for use in read_imports(modules):
        if use.imported in modules and not use.typing_only:
            graph[use.importer].add(use.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None
