"""A model in ONNX Runtime: how it is set up, and loaded."""

from typing import Any

from server.errors import ArtifactInvalid, ProviderUnavailable
from server.inference.artifact import Artifact
from server.inference.devices import CPU
from server.ort import onnxruntime

Providers = list[tuple[str, dict[str, Any]]]

INPUT, OUTPUT = "images", "candidates"


def session_options(threads: int, *, spinning: bool = False) -> Any:
    """The settings that all sessions have; the arguments are those of `Session.open`."""
    options = onnxruntime().SessionOptions()
    # Fatal only: it writes past our log, and what is an error is raised as well.
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads burn the quota that decoding needs (onnxruntime#7207, #10113).
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # A plan of the memory is made for each shape that comes, and kept.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    return options


def cpu_options(
    precision: str, threads: int, *, spinning: bool = False, exact_integers: bool = True
) -> Any:
    """The settings of a session on a CPU.

    Args:
        precision: of the artifact.
        threads: as `Session.open` takes them.
        spinning: likewise.
        exact_integers: the CPU has instructions that sum products of int8 in 32 bits.
    """
    options = session_options(threads, spinning=spinning)
    # 5 to 8 % faster, and smaller: after every bucket of up to 480 x 480, one image a call from two
    # threads, YOLOv8n held 154 MB with an arena and 213 MB without (batches of 8: 295 and 557),
    # because the C library keeps what it was given back, for every thread.
    options.enable_cpu_mem_arena = True
    # What finds them at each load compares all tensors with all others: half of the load's time
    # (104 ms instead of 205). With an arena, calls are as fast without, and take little more
    # memory: on two threads 75 MB and not 70, in batches of 8 222 and not 174 (int8 156 and 173).
    options.enable_mem_reuse = False
    if spinning:
        # Only during a run: between two, nobody burns the CPUs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Work is handed out in shrinking pieces, so that no thread waits for the slowest.
        options.add_session_config_entry("session.dynamic_block_base", "4")
    if precision == "int8" and not exact_integers:
        # ONNX Runtime's fast way saturates pairs of products at 16 bits then, and detections
        # change. Not otherwise: this is slower, and ONNX Runtime does it on CPUs with VNNI too.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def load(artifact: Artifact, options: Any, providers: Providers) -> Any:
    """A model in ONNX Runtime, loaded for the first of the providers.

    Raises:
        ProviderUnavailable: one for GPUs cannot load it.
        ArtifactInvalid: the CPU cannot, or its input or output are not those of an artifact.
    """
    ort = onnxruntime()
    try:
        # Without the fallback, which prints why, and takes the CPU where that is raised.
        session = ort.InferenceSession(
            str(artifact.path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime has no common base of its exceptions
        if providers[0][0] != CPU:
            reason = " ".join(str(error).split())
            raise ProviderUnavailable(
                f"{providers[0][0]} cannot load the model (`python -m server doctor` says what is "
                f"missing): {reason}"
            ) from None
        raise ArtifactInvalid(f"{artifact.path}: ONNX Runtime cannot load it: {error}") from None
    signature = [(each.name, each.type) for each in (*session.get_inputs(), *session.get_outputs())]
    if signature != [(INPUT, "tensor(uint8)"), (OUTPUT, "tensor(float)")]:
        raise ArtifactInvalid(
            f"{artifact.path}: an artifact maps images (uint8) to candidates (float), "
            f"this model has {signature}"
        )
    return session
