"""The versions of the CCE API, in CCE's format.

Source: CCE API reference of Huawei Cloud, "Obtaining API Versions" (ShowVersion).
"""

from clustercert.model import JsonObject


def api_version(base_url: str) -> JsonObject:
    """Render the only version. The empty fields mean that there are no minor versions.

    The link leads to `/api/v3`, because `/v3` is the identity API here.
    """
    return {
        "id": "v3",
        "links": [{"href": f"{base_url}/api/v3", "rel": "self"}],
        "min_version": "",
        "status": "CURRENT",
        # The day on which CCE released this version, in CCE's format.
        "updated": "2018-09-15 00:00:00Z",
        "version": "",
    }
