"""The command `openstack`, with a tenant's login."""

import os
import subprocess
import sys
from pathlib import Path

from support.installed_demo import Tenant


def openstack(tenant: Tenant, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as the tenant's user. Its status is not checked."""
    settings = {
        "OS_AUTH_URL": f"{tenant.url}/v3",
        "OS_USERNAME": tenant.user_name,
        "OS_PASSWORD": tenant.password,
        "OS_USER_DOMAIN_ID": tenant.domain_id,
        "OS_PROJECT_ID": tenant.project_id,
        "OS_REGION_NAME": tenant.region,
        "OS_IDENTITY_API_VERSION": "3",
    }
    return subprocess.run(
        [Path(sys.executable).parent / "openstack", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **settings},
    )
