"""Draw the sample pictures of the page "Try a ticket in your browser": docs/browser/*.png, 128x128.

python docs/browser/pictures.py
"""

import pathlib

from PIL import Image, ImageDraw, ImageFilter

HERE = pathlib.Path(__file__).resolve().parent
SIZE = 512  # drawn large, so that edges are smooth


def scene(top, bottom, horizon=SIZE):
    """Return a picture of two colours, one above the other."""
    image = Image.new("RGB", (SIZE, SIZE), top)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, SIZE, SIZE), fill=bottom)
    return image, draw


def airplane():
    image, draw = scene("#8fb9e6", "#8fb9e6")
    draw.polygon([(60, 270), (110, 240), (420, 235), (470, 255), (420, 285), (110, 295)], fill="#eef1f4")
    draw.polygon([(210, 250), (290, 250), (200, 420), (160, 420)], fill="#c5ccd4")
    draw.polygon([(220, 245), (280, 245), (230, 150), (205, 150)], fill="#d5dbe2")
    draw.polygon([(70, 265), (130, 245), (95, 150), (60, 150)], fill="#b03a3a")
    return image


def ship():
    image, draw = scene("#a9c6de", "#2f5f86", 340)
    draw.polygon([(50, 300), (460, 300), (410, 390), (100, 390)], fill="#5a2a24")
    draw.rectangle((150, 235, 360, 300), fill="#f1f1ec")
    draw.rectangle((190, 185, 300, 235), fill="#e2e2dc")
    draw.rectangle((225, 110, 265, 185), fill="#c4402f")
    return image


def automobile():
    image, draw = scene("#c9cfd4", "#6e7175", 330)
    draw.rounded_rectangle((50, 240, 465, 360), 40, fill="#b51f24")
    draw.polygon([(130, 250), (185, 160), (330, 160), (400, 250)], fill="#b51f24")
    draw.polygon([(155, 245), (197, 175), (250, 175), (250, 245)], fill="#263038")
    draw.polygon([(265, 245), (265, 175), (322, 175), (372, 245)], fill="#263038")
    for x in (95, 330):
        draw.ellipse((x, 305, x + 95, 400), fill="#17181a")
        draw.ellipse((x + 27, 332, x + 68, 373), fill="#9aa0a6")
    return image


def truck():
    image, draw = scene("#b9c7d2", "#77797c", 350)
    draw.rectangle((40, 130, 330, 350), fill="#e9e6dd")
    draw.polygon([(335, 190), (420, 190), (470, 265), (470, 350), (335, 350)], fill="#2f62a8")
    draw.polygon([(350, 205), (412, 205), (448, 262), (350, 262)], fill="#263038")
    for x in (75, 170, 370):
        draw.ellipse((x, 315, x + 85, 400), fill="#17181a")
        draw.ellipse((x + 25, 340, x + 60, 375), fill="#9aa0a6")
    return image


def main():
    for make in (airplane, ship, automobile, truck):
        image = make().filter(ImageFilter.GaussianBlur(3)).resize((128, 128), Image.Resampling.LANCZOS)
        image.save(HERE / f"{make.__name__}.png", optimize=True)


if __name__ == "__main__":
    main()
