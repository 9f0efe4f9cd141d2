"""The plane of networks: which ones no other beats."""

from __future__ import annotations

from resfit.report.figures import plane
from resfit.report.svg import draw_plane


def test_the_front_holds_what_no_other_network_beats():
    found = plane("t", "x", [("a", 0, 1, 9), ("b", 0, 2, 5), ("worse", 1, 2, 6), ("c", 1, 5, 5), ("d", 2, 9, 1)])
    assert [place.name for place in found.places if place.front] == ["a", "b", "d"]


def test_equal_networks_are_both_in_front():
    assert all(place.front for place in plane("t", "x", [("a", 0, 1, 1), ("b", 1, 1, 1)]).places)


def test_names_cannot_break_the_drawing():
    drawn = draw_plane(plane("t", "x", [("<b>", 0, 1, 1)]))
    assert "<b>" not in drawn
    assert "&lt;b&gt;" in drawn
