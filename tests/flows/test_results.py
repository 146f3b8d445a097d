from pathlib import Path

from pixelmill.flows.results import keep_results, results_folder
from pixelmill.tasks.store import Store


def test_results_of_a_local_store_lie_in_it(tmp_path):
    store = Store(tmp_path / "store", create=True)
    folder = results_folder(store, "night")
    assert folder == tmp_path / "store/reports/night"
    folder.mkdir(parents=True)
    (folder / "report.html").write_bytes(b"page")
    keep_results(store, "night", [folder / "report.html"])
    assert [entry.key for entry in store.backend.list("reports")] == ["reports/night/report.html"]


def test_results_of_an_object_store_are_beside_the_caller_and_in_it(s3_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, other = Store(s3_root, create=True), Store(f"{s3_root}-2", create=True)
    folder = results_folder(store, "night")
    assert folder.is_relative_to(tmp_path / "pixelmill-reports")
    assert folder != results_folder(other, "night")
    folder.mkdir(parents=True)
    for name in ("report.html", "metrics.json", "old.txt"):
        Path(folder, name).write_text(name)
    keep_results(store, "night", [folder / "report.html", folder / "metrics.json"])
    assert store.backend.get("reports/night/report.html") == b"report.html"
    keys = [entry.key for entry in store.backend.list("reports")]
    assert keys == ["reports/night/metrics.json", "reports/night/report.html"]
