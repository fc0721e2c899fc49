# Sourced by the scripts in this folder: names of targets, the folder for what is fetched, and how to say things.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What is fetched for building stays here; removing it costs only the time to fetch it again.
cache=${GROVE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/grove}
cargo=${CARGO:-cargo}

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The Rust target of a Debian architecture.
triple_of() {
    case $1 in
    amd64) echo x86_64-unknown-linux-gnu ;;
    arm64) echo aarch64-unknown-linux-gnu ;;
    armhf) echo armv7-unknown-linux-gnueabihf ;;
    *) die "no such architecture: $1 (amd64, arm64 or armhf)" ;;
    esac
}

# The Debian architecture of a Rust target.
arch_of() {
    case $1 in
    x86_64-*) echo amd64 ;;
    aarch64-*) echo arm64 ;;
    armv7-*) echo armhf ;;
    arm-*) echo armv6 ;;
    *) die "no such target: $1" ;;
    esac
}

# The prefix of Debian's cross compiler for a Rust target.
gnu_of() {
    case $1 in
    aarch64-*) echo aarch64-linux-gnu ;;
    armv7-*) echo arm-linux-gnueabihf ;;
    x86_64-*) echo x86_64-linux-gnu ;;
    *) die "Debian has no cross compiler for $1" ;;
    esac
}

host_arch() { dpkg --print-architecture; }

# The first of the programs that is there: Debian 12 and 13 name QEMU's differently.
first_program() {
    local name
    for name; do command -v "$name" && return; done
    return 1
}

qemu_user() { # TARGET
    case $1 in
    aarch64-*) first_program qemu-aarch64-static qemu-aarch64 ;;
    arm*) first_program qemu-arm-static qemu-arm ;;
    esac || die "QEMU's user mode is missing: make cross-deps"
}

need() { # PROGRAM...: all of them, or the way to get them
    local name missing=()
    for name; do PATH="$PATH:/usr/sbin:/sbin" command -v "$name" >/dev/null || missing+=("$name"); done
    if [ ${#missing[@]} -gt 0 ]; then die "missing: ${missing[*]} (make cross-deps installs what the cross builds need)"; fi
}

# Runs apt on the machine's own sources as if it had another architecture, with all that it writes in a folder
# of its own: nothing is installed and the system's lists stay as they are.
private_apt() { # FOLDER ARCH COMMAND...
    local folder=$1 arch=$2 options
    shift 2
    mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$folder/state"
    : >>"$folder/state/status"
    options=(-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o "Dir::State=$folder/state"
        -o "Dir::State::Lists=$folder/lists" -o "Dir::State::status=$folder/state/status" -o "Dir::Cache=$folder"
        -o Debug::NoLocking=1 -o APT::Install-Recommends=false -o Acquire::Languages=none -o Acquire::Retries=3
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    if [ -n "${APT_PARTS:-}" ]; then options+=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$APT_PARTS"); fi
    if [ "$(id -u)" = 0 ]; then options+=(-o APT::Sandbox::User=root); fi
    local tool=$1
    shift
    "$tool" "${options[@]}" "$@"
}

# The machine's own sources of Debian's packages, in apt's newer form; of the older form, which Debian's installer wrote up to
# Debian 12, what is of this very release. Without either, nothing.
debian_sources() { # [ROOT]
    local folder=${1:-}/etc/apt codename
    if [ -e "$folder/sources.list.d/debian.sources" ]; then
        cat "$folder/sources.list.d/debian.sources"
        return
    fi
    codename=$(sed -n 's/^VERSION_CODENAME=//p' "${1:-}/etc/os-release")
    [ -e "$folder/sources.list" ] || return 0
    sed -E 's/^deb[[:space:]]+\[[^]]*\]/deb/' "$folder/sources.list" | awk -v release="$codename" '
        $1 == "deb" && $2 !~ /^cdrom:/ && ($3 == release || index($3, release "-") == 1) && $3 !~ /-backports/ {
            parts = $4
            for (i = 5; i <= NF && $i !~ /^#/; i++) parts = parts " " $i
            printf "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n", $2, $3, parts
        }'
}

# A disk that is nearly full is no matter of a trial: its cell keeps no reserve worth the name.
without_reserve() { # CONFIG.JSON
    sed -i 's/"disk.reserve_percent": [0-9]*/"disk.reserve_percent": 0/; s/"disk.reserve_bytes_min": [0-9]*/"disk.reserve_bytes_min": 1048576/' "$1"
}

# Seconds since 1970 of the commit that is built, for dates that are the same each time.
source_epoch() {
    if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then echo "$SOURCE_DATE_EPOCH"; return; fi
    git -c safe.directory='*' -C "$root" log -1 --format=%ct 2>/dev/null || date -r "$root/Cargo.toml" +%s
}

version_of_source() { sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1; }
