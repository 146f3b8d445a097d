import re

from pixelmill.tasks.report.palette import HUES, assign_colours, colour_css


def test_hues_differ():
    assert len(set(HUES)) == len(HUES)
    assert all(re.fullmatch("#[0-9a-f]{6}", hue) for hue in HUES)


def test_colour_depends_on_the_place_of_first_appearance_only():
    colours = assign_colours(["car", "boat", "car", "tree"])
    assert [colours.css(name) for name in ("car", "boat", "tree")] == ["k0", "k1", "k2"]
    assert colours.css("unknown") == "k-other"
    assert colours.rgb("car") == (0x00, 0x77, 0xBB)


def test_more_classes_than_hues_come_round_again():
    names = [f"class {k}" for k in range(len(HUES) + 1)]
    colours = assign_colours(names)
    assert colours.css(names[-1]) == colours.css(names[0])


def test_text_upon_every_hue_is_legible():
    def luminance(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    rules = dict(re.findall(r"--c:(#\w{6});--on:(#\w{3})", colour_css()))
    assert rules.keys() == set(HUES)
    for hue, text in rules.items():
        light, dark = sorted((luminance(hue), 1.0 if text == "#fff" else 0.0), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, hue
