"""The page and the table from made-up records."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from common import RECORDS, medians, read_records
from page import HERE, html, markdown, sections

CPU = {
    "cpu": "Some <CPU>",
    "cpu_features": ["avx2", "avx512f"],
    "gpu": None,
    "threads": 2,
    "commit": "abc",
    "command": "step.py data",
}


def record(benchmark: str, subject: str, rounds: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    head = {"benchmark": benchmark, "subject": subject, "settings": settings}
    return {**head, "medians": medians(rounds), "rounds": rounds, "env": CPU}


def run(seconds: float, accuracy: float) -> dict[str, float]:
    return {"seconds": seconds, "accuracy": accuracy}


@pytest.fixture
def records() -> list[dict[str, Any]]:
    runs = [
        {"resfit": run(100, 0.941), "peer": run(400, 0.938), "ratios": {"seconds to peer": 0.25}},
        {"resfit": run(120, 0.943), "peer": run(400, 0.940), "ratios": {"seconds to peer": 0.30}},
        {"resfit": run(110, 0.942), "peer": run(400, 0.939), "ratios": {"seconds to peer": 0.27}},
    ]
    step = {
        "ceiling bf16": {"matrix product": 800.0},
        "resfit bf16": {"images_per_second": 300.0, "peak_host_bytes": 1.5e9},
        "usual": {"images_per_second": 60.0},
        "ratios": {"bf16 to usual": 5.0, "bf16 share of ceiling": 0.75},
    }
    kernels = {"matrix product": 200.0, "3-8 3x3/1 @32": 100.0, "3-8 3x3/1 @32 with backward": 50.0}
    point = {"macs": 1e8, "params": 1e6, "side": 32.0, "threads": 2.0}
    growth = {
        "images 10": {**point, "images": 10.0, "images_per_second": 100.0},
        "images 20": {**point, "images": 20.0, "images_per_second": 110.0},
        "storage resident": {**point, "images": 20.0, "images_per_second": 100.0},
        "storage cold": {**point, "images": 20.0, "images_per_second": 93.0},
        "ratios": {"cold": 0.93},
    }
    return [
        record("step", "net", [step]),
        record("to_accuracy", "fast", runs, target=0.94, peer_images=None),
        record("ceiling", "kernels", [{"fp32": kernels, "bf16": kernels, "ratios": {}}]),
        record("scaling", "net", [growth]),
    ]


def row(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words))


def test_a_target_is_reached_by_the_mean_and_the_ratio_is_the_median_of_the_rounds(records):
    text = markdown(records)
    assert "94.20 ± 0.10 % | yes | 110 ± 10 | – |" in row(text, "resfit fast")
    assert "93.90 ± 0.10 % | no | 400 ± 0 | 0.27 |" in row(text, "peer")


def test_runs_on_a_part_of_the_images_are_no_result(records):
    trial = record("to_accuracy", "trial", records[1]["rounds"], target=0.94, peer_images=2000)
    assert "trial" not in markdown([trial]).split("Commands")[0]


def test_a_step_has_its_speed_its_ratio_its_share_and_its_memory(records):
    assert "300 | 5.00 | 75\N{NO-BREAK SPACE}% | 1.50 | 1 |" in row(markdown(records), "resfit bf16")


def test_a_kernel_has_its_share_of_the_matrix_product(records):
    (found,) = (section for section in sections(records) if section.title == "Ceilings")
    kernel = found.tables[0].rows[1]
    assert [(cell.text, cell.part) for cell in kernel[1:3]] == [("100", 0.5), ("50", 0.25)]


def test_cost_grows_in_a_chart_and_storage_has_its_ratio(records):
    (found,) = (section for section in sections(records) if section.title == "Scaling")
    assert [chart.series[0].points for chart in found.charts] == [((10.0, 100.0), (20.0, 110.0))]
    assert row(markdown(records), "storage cold").endswith("0.93 |")


def test_the_page_is_one_file_with_every_chart_and_shows_names_as_text(records):
    page = html(records)
    assert not re.search(r"""(src|href)=|url\(|@import|<script""", page)
    charts = sum(len(section.charts) for section in sections(records))
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == charts == 3
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "Some &lt;CPU&gt;" in page
    assert "<CPU>" not in page


def test_what_a_run_costs_beyond_its_own_time_has_a_row_for_each_place():
    times = {"first": 5.5, "median": 0.0625, "largest": 0.25}
    found = record("overhead", "digits", [{"ray": times, "here": {**times, "first": 0.5}, "ratios": {}}], runs=10)
    assert row(markdown([found]), "| on Ray |").endswith("| 5.50 | 0.06 | 0.25 | 10 |")
    assert "| 0.50 | 0.06 |" in row(markdown([found]), "| in this process |")


def test_a_start_has_its_median_its_slowest_and_a_runs_memory():
    rounds = [
        {"resfit recipes": {"seconds": seconds}, "first step": {"seconds": 4.0, "peak_host_bytes": 1.5e9}, "ratios": {}}
        for seconds in (0.25, 0.75, 0.5)
    ]
    text = markdown([record("start", "fast", rounds)])
    assert row(text, "resfit recipes").endswith("| 0.50 | 0.75 | – | 3 |")
    assert row(text, "training fast, to its first step").endswith("| 4.00 | 4.00 | 1.50 | 3 |")


def test_a_benchmark_without_records_has_no_section(records):
    assert [section.title for section in sections(records[:1])] == ["Training step"]
    assert sections([]) == []


def test_the_committed_pages_are_those_of_the_committed_records():
    records = read_records(RECORDS)
    assert (HERE / "README.md").read_text(encoding="utf-8") == markdown(records)
    assert (HERE / "benchmarks.html").read_text(encoding="utf-8") == html(records)
