"""Words that have been replaced stay replaced: in code, documentation and page."""

import re
import subprocess
from pathlib import Path

# The word that is gone, and the one in its place. A name is searched as a whole identifier.
GONE = {
    # settings, metrics, states, log events, alerts
    "http_processes": "http_workers",
    "max_upload_bytes": "max_inflight_body_bytes",
    "upload_bytes": "inflight_body_bytes",
    "stuck_after_s": "inference_watchdog_s",
    "jpeg_reduced_decoding": "jpeg_dct_scaling",
    "detector_http_processes": "detector_http_workers",
    "detector_http_process_restarts_total": "detector_worker_restarts_total",
    "detector_lanes": "detector_instances",
    "detector_busy_lanes": "detector_active_inferences",
    "detector_lane_seconds_total": "detector_inference_busy_seconds_total",
    "detector_upload_bytes": "detector_inflight_body_bytes",
    "detector_max_upload_bytes": "detector_max_inflight_body_bytes",
    "http_process_started": "http_worker_started",
    "http_process_ended": "http_worker_ended",
    "http_process_not_started": "http_worker_not_started",
    "http_process_silent": "http_worker_unresponsive",
    "DetectorStuck": "DetectorHung",
    "stuck": "hung",
    "lane": "instance",
    "lanes": "instances",
    # HTTP workers
    "fronts": "workers",
    "FrontLink": "WorkerConnection",
    "FrontServer": "WorkerServer",
    "Hub": "Coordinator",
    "hub": "coordinator",
    "Unfit": "StartupFailed",
    "silent_beats": "missed_heartbeats",
    "takes_none": "on_unresponsive",
    "Distributor": "ConnectionDispatcher",
    "Intake": "ConnectionReceiver",
    "intake": "receiver",
    "Board": "SharedStatus",
    "TooManyDeaths": "CrashLoop",
    # queue, memory, sessions
    "next_turn": "next_start",
    "give_back": "release",
    "NoRoom": "MemoryUnavailable",
    "DecodeMemory": "DecodeMemoryLimiter",
    "busy_lanes": "active_inferences",
    "LoneCalls": "AdaptiveThreading",
    "lone_session": "latency_session",
    "SideBySide": "SessionPool",
    "OwnModel": "LocalModel",
    "ModelCalls": "ModelRunner",
    "page_locked": "pinned_array",
    "RemotePlace": "RemoteReservation",
    "in_words": "describe",
    # HTTP and client
    "answer_errors": "install_error_handlers",
    "write_infer_answer": "write_infer_response",
    "annotated_picture": "annotated_image",
    "PictureRefused": "ImageRefused",
    "picture": "image",
    "pictures": "images",
    # GPU
    "CudaOptions": "cuda_graphs",
    "jpeg_orientation": "JpegHeader.orientation",
    "UnexpectedAnswer": "UnexpectedResponse",
    "_Gentle": "_LingeringTransport",
    "_deaf": "_discarding",
    "unfetched": "unread",
    "fetch_s": "write_timeout_s",
}
# Where such a word means something else.
HOMONYMS = {
    "hub": (
        "Docker Hub, Hugging Face Hub and `torch.hub`",
        re.compile(r"torch\.hub|[Dd]ocker.{0,3}[Hh]ub|hub\.docker"),
    ),
    "pictures": (
        "the certificates in the default weights, as `inspect` prints them",
        re.compile(r"^(compared|calibrated) "),
    ),
    "Hub": (
        "Docker Hub and Hugging Face Hub",
        re.compile(r"(Docker|Face|Model) Hub|Hub\b.*(hf|docker)"),
    ),
}
# This table; the one for users; what records a change, a run or a licence as it was.
LEFT_OUT = (
    "tests/unit/test_vocabulary.py",
    "docs/upgrading.md",
    "CHANGELOG.md",
    "docs/evidence/",
    "constraints.txt",
)
TEXT = {".py", ".md", ".js", ".css", ".html", ".yml", ".yaml", ".json", ".toml", ".txt", ".sh", ""}


def test_words_that_were_replaced_are_gone(repo_dir: Path) -> None:
    named = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(named, cwd=repo_dir, capture_output=True, text=True, check=True)
    gone = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(map(re.escape, GONE))})(?![A-Za-z0-9_])")
    found = []
    for name in listed.stdout.splitlines():
        path = repo_dir / name
        if name.startswith(LEFT_OUT) or path.suffix not in TEXT or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for word in gone.findall(line):
                reason, allowed = HOMONYMS.get(word, ("", None))
                if not (allowed and allowed.search(line)):
                    found.append(
                        f"{name}:{number}: {word}; it is {GONE[word]} now {reason}".strip()
                    )
    assert not found, "\n".join(found)
