#!/usr/bin/env bash
# A container tool where there is none, and builds that need nothing but what this machine has.
#
#   .ci/container_tools.sh tool           prints a command that is used like docker; 3 and a reason if there is none
#   .ci/container_tools.sh build ARGS...  builds as `docker build ARGS...` does
#
# A Docker engine is taken as it is, and so is podman of someone who is not root. Root on Debian gets podman from
# Debian's packages, with a storage of its own in $CONTAINER_STORAGE (build/containers), which `rm -rf` removes.
# Where Docker Hub can't be reached, the base image is made by debootstrap from Debian's own packages.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
storage=${CONTAINER_STORAGE:-$root/build/containers}
base=docker.io/library/debian:bookworm-slim
needed=(podman runc netavark debootstrap)

say() { printf '%s\n' "$*" >&2; }
none() { say "no container tool: $*"; exit 3; }
have() { command -v "$1" >/dev/null 2>&1; }

missing() {
    local each
    for each in "${needed[@]}"; do
        # netavark is no command: podman finds it in its own folder.
        have "$each" || [ -x "/usr/lib/podman/$each" ] || printf '%s ' "$each"
    done
}

install_podman() {
    [ -z "$(missing)" ] && return
    have apt-get || none "$(missing)are not installed, and there is no apt-get to install them with"
    say "installing podman from Debian's packages"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        podman buildah runc netavark aardvark-dns catatonit uidmap iptables debootstrap; } >"$storage/apt.log" 2>&1 ||
        none "apt-get can't install podman: $(tail -n 1 "$storage/apt.log")"
    [ -z "$(missing)" ] || none "after the installation $(missing)still missing"
}

# podman with settings that neither need systemd nor touch what is the machine's.
write_podman() {
    local files manager=systemd
    [ -d /run/systemd/system ] || manager=cgroupfs
    # Root of a container may lack the right to raise this limit, so podman's default of a million fails there.
    files=$(ulimit -Hn)
    if [ "$files" = unlimited ] || [ "$files" -gt 1048576 ]; then files=1048576; fi
    cat >"$storage/storage.conf" <<EOF
[storage]
driver = "overlay"
graphroot = "$storage/storage"
runroot = "$storage/run"
EOF
    # runc, as crun refuses machines that mix both versions of control groups.
    cat >"$storage/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=16384:16384"]
[network]
network_backend = "netavark"
network_config_dir = "$storage/networks"
[engine]
runtime = "runc"
cgroup_manager = "$manager"
events_logger = "file"
tmp_dir = "$storage/tmp"
EOF
    cat >"$storage/podman" <<EOF
#!/bin/sh
export CONTAINERS_STORAGE_CONF='$storage/storage.conf' CONTAINERS_CONF='$storage/containers.conf'
exec podman "\$@"
EOF
    chmod +x "$storage/podman"
}

make_base() {
    local podman=$1 rootfs=$storage/rootfs sources=/etc/apt/sources.list.d/debian.sources mirror=
    "$podman" image exists "$base" && return
    timeout 120 "$podman" pull -q "$base" >/dev/null 2>&1 && return
    say "Docker Hub can't be reached: making $base with debootstrap"
    rm -rf "$rootfs"
    [ ! -f "$sources" ] || mirror=$(awk '/^URIs:/ { print $2; exit }' "$sources")
    debootstrap --variant=minbase bookworm "$rootfs" ${mirror:+"$mirror"} >"$storage/debootstrap.log" 2>&1 ||
        none "the base image can neither be pulled nor made: $(tail -n 1 "$storage/debootstrap.log")"
    # What debootstrap takes over from this machine goes, and what the image on Docker Hub leaves out, too.
    : >"$rootfs/etc/resolv.conf"
    rm -f "$rootfs/etc/hostname"
    if [ -f "$sources" ]; then
        rm -f "$rootfs/etc/apt/sources.list"
        cp "$sources" "$rootfs$sources"
    fi
    rm -rf "$rootfs"/var/cache/apt/*.bin "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* \
        "$rootfs"/var/log/*.log "$rootfs"/var/log/apt "$rootfs"/usr/share/{doc,info,locale,man}/*
    printf 'path-exclude /usr/share/%s/*\n' doc groff info linda lintian locale man >"$rootfs/etc/dpkg/dpkg.cfg.d/docker"
    echo 'path-include /usr/share/doc/*/copyright' >>"$rootfs/etc/dpkg/dpkg.cfg.d/docker"
    tar -C "$rootfs" --numeric-owner -c . | "$podman" import -q --change 'CMD ["bash"]' \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$base" >/dev/null
    rm -rf "$rootfs"
}

find_tool() {
    if have docker && docker info >/dev/null 2>&1; then
        echo docker
    elif [ "$(id -u)" != 0 ]; then
        have podman || none "neither a Docker engine nor podman, and only root could install it"
        echo podman
    else
        mkdir -p "$storage"
        install_podman
        write_podman
        "$storage/podman" info >/dev/null 2>"$storage/info.log" || none "podman: $(tail -n 1 "$storage/info.log")"
        make_base "$storage/podman"
        echo "$storage/podman"
    fi
}

# What pip needs on this machine goes into the build as secrets, so that no image keeps it.
write_secrets() {
    local folder=$1 authorities=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} key value
    echo '[global]' >"$folder/pip.conf"
    if [ -r "$authorities" ]; then
        cp "$authorities" "$folder/ca.crt"
        echo 'cert = /run/build-ca.crt' >>"$folder/pip.conf"
    fi
    have python3 || return 0
    for key in index-url extra-index-url trusted-host proxy; do
        # A folder of this machine is not there in the build.
        value=$(python3 -m pip config get "global.$key" 2>/dev/null | tr -s ' \n' '\n\n' | grep -v '^file:' | tr '\n' ' ') || true
        [ -z "$value" ] || echo "$key = $value" >>"$folder/pip.conf"
    done
}

build() {
    local tool flags=()
    tool=$(find_tool)
    secrets=$(mktemp -d)
    trap 'rm -rf "$secrets"' EXIT
    write_secrets "$secrets"
    flags+=(--secret "id=pipconf,src=$secrets/pip.conf")
    [ ! -f "$secrets/ca.crt" ] || flags+=(--secret "id=ca,src=$secrets/ca.crt")
    if [ "$tool" != docker ]; then
        # podman's own image format drops HEALTHCHECK.
        flags+=(--format docker)
        # The machine's way to the package registries may not be open to a network of the build's own.
        [ "$tool" = podman ] || flags+=(--pull=never --network=host)
    fi
    DOCKER_BUILDKIT=1 "$tool" build "${flags[@]}" "$@"
}

case ${1:-} in
tool) find_tool ;;
build) shift && build "$@" ;;
*) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 64 ;;
esac
