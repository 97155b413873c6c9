#!/usr/bin/env bash
# Make sure there is a Chromium for the report test. Installs Debian's package when this machine lets us;
# otherwise says so, and the test is reported as not run, with this reason.
set -eu

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium for the report test (Debian package)"
    log=$(mktemp)
    if { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >"$log" 2>&1
    then
        rm -f "$log"
        exit 0
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
fi

echo "NOTE: there is no Chromium and this script may not install it; the report test will not run." >&2
echo "      Install it yourself, for example: sudo apt-get install chromium" >&2
