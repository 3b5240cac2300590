"""Login by device code: the user completes it in a browser on any machine. Source: RFC 8628."""

import time
from collections.abc import Callable

from clustercert.client.oidc.errors import IssuerUnreachable, LoginRefused, OAuthError
from clustercert.client.oidc.grants import DeviceCode, IssuerClient
from clustercert.client.oidc.tokens import Tokens

# RFC 8628, 3.5.
_SLOW_DOWN_SECONDS = 5
_LONGEST_INTERVAL = 60


def log_in_by_device_code(
    client: IssuerClient,
    show: Callable[[DeviceCode], None],
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Tokens:
    """Wait until the user completes the login. Raises ClientError.

    Args:
        show: tells the user where to enter which code.
    """
    device = client.device_code()
    show(device)
    interval, deadline = device.interval, now() + device.seconds
    while now() + interval < deadline:
        sleep(interval)
        try:
            return client.poll(device)
        except IssuerUnreachable:
            # RFC 8628, 3.5: poll less often after a time-out.
            interval = min(interval * 2, _LONGEST_INTERVAL)
        except OAuthError as error:
            if error.error == "access_denied":
                raise LoginRefused(f"The login was denied at {client.issuer.url}.") from error
            if error.error == "expired_token":
                break
            if error.error == "slow_down":
                interval = min(interval + _SLOW_DOWN_SECONDS, _LONGEST_INTERVAL)
            elif error.error != "authorization_pending":
                raise
    raise LoginRefused("Nobody entered the code in time. Run `clustercert login --device` again.")
