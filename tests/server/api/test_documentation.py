"""`/docs` shows the API with files that this server has, and loads nothing from elsewhere."""

from __future__ import annotations

import re

from tests.server.conftest import Connect


async def test_the_page_loads_nothing_from_elsewhere(connect: Connect) -> None:
    client = await connect()
    page = (await client.get("/docs")).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) == 3
    assert "//" not in page.replace("</", "").split("<body>")[0]
    for path in loaded:
        assert not path.startswith("/"), "or it would not hold behind a path prefix"
        assert (await client.get(path)).status_code == 200
    script = (await client.get(next(path for path in loaded if path.endswith(".js")))).text
    assert "SwaggerUIBundle" in script
    assert "url: 'openapi.json'" in page
    assert '"validatorUrl": "none"' in page


async def test_what_is_not_there_is_an_error_like_any_other(connect: Connect) -> None:
    client = await connect()
    for path in ("/docs/assets/nothing.js", "/docs/assets/../../etc/passwd", "/redoc"):
        response = await client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"
