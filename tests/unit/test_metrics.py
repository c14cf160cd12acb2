from prometheus_client.parser import text_string_to_metric_families

from server.metrics import STAGES, Metrics

LABELS = {
    "detector_requests": {"route", "status"},
    "detector_images": {"outcome"},
    "detector_stage_seconds": {"stage"},
    "detector_request_seconds": set(),
    "detector_batch_size": set(),
    "detector_queue_images": set(),
    "detector_rejected": {"reason"},
    "detector_inflight_requests": set(),
    "detector_model_info": {"name", "version", "precision", "provider", "device"},
}


def used() -> Metrics:
    metrics = Metrics(lambda: 5, ["queue_full"])
    metrics.requests.labels("/detect", "200").inc()
    metrics.set_model(name="n", version="v", precision="fp32", provider="P", device="cpu")
    return metrics


def families(metrics: Metrics) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    text = metrics.exposition().decode()
    return {
        family.name: {frozenset(s.labels.items()): s.value for s in family.samples}
        for family in text_string_to_metric_families(text)
    }


def test_every_metric_of_the_design_is_exposed_with_its_labels() -> None:
    exposed = families(used())
    for name, labels in LABELS.items():
        keys = {key for series in exposed[name] for key, _ in series} - {"le"}
        assert keys == labels, name


def test_no_other_metric_of_ours_is_exposed() -> None:
    ours = {name for name in families(used()) if name.startswith("detector_")}
    assert ours == set(LABELS)


def test_the_queue_is_asked_at_every_scrape() -> None:
    waiting = [3]
    metrics = Metrics(lambda: waiting[0], [])
    assert families(metrics)["detector_queue_images"] == {frozenset(): 3}
    waiting[0] = 4
    assert families(metrics)["detector_queue_images"] == {frozenset(): 4}


def test_stages_and_rejections_start_at_zero() -> None:
    exposed = families(Metrics(lambda: 0, ["queue_full"]))
    assert exposed["detector_rejected"] == {frozenset({("reason", "queue_full")}): 0}
    stages = {dict(s).get("stage") for s in exposed["detector_stage_seconds"]}
    assert stages == set(STAGES)


def test_two_apps_do_not_share_their_counts() -> None:
    first, second = used(), used()
    first.requests.labels("/detect", "200").inc()
    series = frozenset({("route", "/detect"), ("status", "200")})
    assert families(first)["detector_requests"][series] == 2
    assert families(second)["detector_requests"][series] == 1
