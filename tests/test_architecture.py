"""Who may import whom, and what every pass must bring along."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from typing_extensions import override

from onnxcomp import registry

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "onnxcomp").rglob("*.py"), *(ROOT / "passes").rglob("*.py")])

# Lower layers must not know higher ones.
LAYERS = [
    {"errors", "stages", "signature", "diagnostics", "cpuinfo", "units"},
    {"ir"},
    {"analysis", "quant", "samples", "targets", "runtime", "compare", "bench", "feeds", "handover"},
    {"passbase", "registry", "recipe", "rules", "patterns"},
    {"pipeline"},
    {"verify", "optimization"},
    {"search", "compression"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# A type, a progress bar or a stage announcement of a higher layer is no dependency worth forbidding.
TOLERATED = {("analysis", "passbase"), ("quant", "passbase")}


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "passes" if "passes" in path.parts else ROOT)
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> list[str]:
    """Returns what a file imports when it runs; imports for type checking only do not count."""
    found = []
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Drop(ast.NodeTransformer):
        @override
        def visit_If(self, node: ast.If) -> ast.AST:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return ast.Pass()
            return self.generic_visit(node)

    transformed: ast.Module = Drop().visit(tree)
    return transformed


def part_of(module: str) -> str:
    return module.split(".")[1] if module.startswith("onnxcomp.") else ""


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_arrows_point_down(path: Path) -> None:
    own = part_of(module_of(path))
    for imported in imports(path):
        other = part_of(imported)
        if own in LEVEL and other in LEVEL and (own, other) not in TOLERATED:
            assert LEVEL[other] <= LEVEL[own], f"{module_of(path)} imports {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_third_parties_have_one_door(path: Path) -> None:
    module = module_of(path)
    for imported in imports(path):
        top = imported.split(".")[0]
        if top == "onnxruntime":
            assert module == "onnxcomp.runtime"
        if top == "onnx_graphsurgeon":
            assert module.startswith("onnxcomp.ir.")
        if top == "onnx_ir":
            assert module == "onnxcomp.ir.backend"
        if top == "onnxcomp_passes":
            assert module.startswith("onnxcomp_passes"), "the framework finds passes by registry"
        if top == "torch":
            pytest.fail(f"{module} imports torch")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, onnxcomp; print([m for m in ('onnx', 'onnxruntime', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_a_model_does_not_load_symbolic_algebra(tmp_path: Path) -> None:
    code = (
        "import sys, onnx, onnxcomp\n"
        'proto = onnx.parser.parse_model(\'<ir_version: 10, opset_import: ["" : 21]>'
        " g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }')\n"
        "onnxcomp.Model.load(proto).save(sys.argv[1])\n"
        "print('sympy.core' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_pass_has_a_test_file_of_its_name() -> None:
    own = [name for name, info in registry.passes().items() if info.distribution == "onnxcomp"]
    missing = [
        name
        for name in own
        if not (ROOT / "tests" / "passes" / f"test_{name.replace('-', '_')}.py").exists()
    ]
    assert not missing
