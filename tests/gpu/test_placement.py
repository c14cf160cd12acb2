import os
from collections import Counter
from pathlib import Path

import pytest

from server.inference.artifact import Artifact
from server.inference.cuda.options import cuda_providers
from server.inference.session import Session
from tests.support.executed import COPIES, Executed, executed
from tests.support.gpu_sessions import CALLS, Calls, RecordProperty, open_session
from tests.support.sample_images import batch_of

pytestmark = pytest.mark.gpu

CPU = "CPUExecutionProvider"
PRECISIONS = ("fp32", "fp16")
# None of these may be on the CPU: where the time goes, and what touches every pixel.
HEAVY = frozenset(
    {
        *("Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "TopK", "Resize", "MaxPool"),
        *("Sigmoid", "QuickGelu", "Softmax", "GatherElements", "ArgMax", "ReduceMax"),
    }
)


def run_once(artifact: Artifact, device: str, folder: Path, *, fixed: bool) -> Executed:
    """What runs of one batch, seen without the server's own session."""
    images = batch_of(artifact.metadata, artifact.metadata.input_hw, 2)
    providers = [(CPU, {})] if device == "cpu" else cuda_providers(0)
    return executed(artifact.path, providers, {"images": images}, folder, fixed=fixed)


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_session_says_that_the_gpu_has_the_heavy_nodes(
    artifacts: dict[str, Artifact], device: str, provider: str, precision: str, calls: Calls
) -> None:
    with open_session(artifacts[precision], device, calls) as session:
        assert (session.provider, session.device) == (provider, device)
        assert session.nodes_by_provider[provider] > 0
        on_cpu = Counter(node.operator for node in session.nodes.get(CPU, ()))
        print(precision, calls, session.nodes_by_provider, dict(on_cpu))
        if device == "cpu":
            return
        assert not HEAVY & on_cpu.keys()
        fixed = calls == "graphs"
        assert not (fixed and on_cpu)
        assert session.copies == ({} if fixed else {"MemcpyFromHost": 1})


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_runs_is_on_the_gpu_and_copies_nothing_back(
    artifacts: dict[str, Artifact],
    device: str,
    tmp_path: Path,
    record_property: RecordProperty,
    precision: str,
    fixed: bool,
) -> None:
    if device != "cpu":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        Session.open(artifacts[precision], device=device).close()  # loads the CUDA libraries
    ran = run_once(artifacts[precision], device, tmp_path, fixed=fixed)
    for (provider, operator), count in sorted(ran.items()):
        print(f"{provider:24} {operator:20} {count}")
    record_property("nodes", sum(ran.values()))
    on_cpu = {operator for provider, operator in ran if provider == CPU}
    copies = {operator: count for (_, operator), count in ran.items() if operator in COPIES}
    assert {"Conv", "FusedConv", "NhwcFusedConv"} & {operator for _, operator in ran}
    if device == "cpu":
        assert on_cpu >= {"TopK", "MaxPool"}
        return
    assert not HEAVY & on_cpu
    # With any shape the number of tokens, one value, goes to the GPU; nothing comes back.
    assert copies == ({} if fixed else {"MemcpyFromHost": 1})
    assert not (fixed and on_cpu)
