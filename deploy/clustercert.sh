#!/bin/sh
# Runs clustercert on the server as the service's user, with the service's settings. Install it on root's PATH:
#   install -m 0755 deploy/clustercert.sh /usr/local/sbin/clustercert
# File names keep their meaning: a relative one is in the current folder, and the user clustercert needs access to it.
set -eu

user=clustercert
program=/opt/clustercert/bin/clustercert
settings=/etc/clustercert/clustercert.toml

fail() {
    printf 'Error: %s\n' "$1" >&2
    exit 1
}

home=$(getent passwd "$user" | cut -d: -f6)
[ -n "$home" ] || fail "This machine has no user $user. Create the user as docs/install.md describes."
[ -x "$program" ] || fail "$program is not installed. Install the service as docs/install.md describes."

# The program gets no other variables than these: not the caller's home, nor passwords and settings for other programs.
for name in $(env | LC_ALL=C sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in
        TERM | COLUMNS | LINES | NO_COLOR | LANG | LANGUAGE | LC_* | TZ) ;;
        http_proxy | https_proxy | no_proxy | all_proxy | HTTP_PROXY | HTTPS_PROXY | NO_PROXY | ALL_PROXY) ;;
        CLUSTERCERT_* | _CLUSTERCERT_COMPLETE | _TYPER_COMPLETE_* | COMP_WORDS | COMP_CWORD) ;;
        *) unset "$name" ;;
    esac
done
export HOME="$home" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONSAFEPATH=1
export CLUSTERCERT_CONFIG="${CLUSTERCERT_CONFIG:-$settings}"
# As in the systemd units: only this user may read what the program writes.
umask 077

case $(id -u) in
    0) exec runuser -u "$user" -- "$program" "$@" ;;
    "$(id -u "$user")") exec "$program" "$@" ;;
    *) fail "This command runs as the user $user, and only root may do that. Run \`sudo clustercert …\`. To use a \
service over its API, install the client." ;;
esac
