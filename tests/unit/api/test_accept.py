import pytest

from server.api.responses import prefers_png

CHROME_IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
CHROME_PAGE = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
)


@pytest.mark.parametrize(
    "accept",
    [
        "image/png",
        "image/png;q=0.9,image/jpeg;q=0.5",
        "IMAGE/PNG ; Q=0.2",
        "image/png, */*;q=0.1",
        "image/jpeg;q=0, */*",
        "image/*;q=0.3, image/png",
        "image/png;profile=x",
        "image/jpeg;q=no, image/png;q=0.1",
    ],
)
def test_a_png_where_it_is_preferred(accept: str) -> None:
    assert prefers_png(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "image/*",
        "image/jpeg",
        "image/png;q=0.5,image/jpeg",
        "image/png,image/jpeg",
        "image/png;q=0",
        "image/png;q=0, image/*",
        "image/png;q=2",
        "image/png;q=nan",
        "application/json",
        "image/pngx",
        ";;,,=;q",
        CHROME_IMG,
        CHROME_PAGE,
    ],
)
def test_a_jpeg_otherwise(accept: str) -> None:
    assert not prefers_png(accept)
