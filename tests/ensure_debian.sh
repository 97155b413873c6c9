#!/usr/bin/env bash
# Make sure that the programs which the tests run as real peers are there: a browser, the engines, the oracles.
# Installs Debian's packages when this machine lets us; otherwise names what is missing, and the tests that need
# it are reported as not run, with this reason. No service is started: each test run starts its own on loopback.
set -eu

# One line each: the package, what proves that it is there, what it is for.
wanted='
chromium chromium|chromium-browser|google-chrome the report test
postgresql-15 /usr/lib/postgresql/15/bin/postgres|postgres the tests of the PostgreSQL engine
etcd-server etcd the tests of the etcd engine
ceph-base crushtool the comparison of placement with CRUSH
libisal2 /usr/lib/x86_64-linux-gnu/libisal.so.2 the comparison of coding with ISA-L
awscli /usr/bin/aws the S3 tests with version 2 of the AWS CLI
rclone rclone the S3 tests with rclone
restic restic the S3 tests with restic
iproute2 tc the tests with a slow node
'

is_there() {
    local name
    for name in ${1//|/ }; do
        if [ -e "$name" ] || command -v "$name" >/dev/null; then return 0; fi
    done
    return 1
}

missing=()
while read -r package proof _; do
    if [ -n "$package" ] && ! is_there "$proof"; then missing+=("$package"); fi
done <<<"$wanted"
if [ ${#missing[@]} = 0 ]; then exit 0; fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing for the tests (Debian packages): ${missing[*]}"
    log=$(mktemp)
    # The packages would make a database and start services; runlevel 1 and this file say no to both.
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        mkdir -p /etc/postgresql-common
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    fi
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    wait_for_lock='DPkg::Lock::Timeout=300'
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends -o "$wait_for_lock" "${missing[@]}"; } \
        >"$log" 2>&1 || tail -n 5 "$log" >&2
    rm -f "$log"
fi

while read -r package proof purpose; do
    if [ -n "$package" ] && ! is_there "$proof"; then
        echo "NOTE: $package is missing and could not be installed; not run: $purpose." >&2
        echo "      Install it yourself, for example: sudo apt-get install $package" >&2
    fi
done <<<"$wanted"
