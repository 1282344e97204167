#!/usr/bin/env bash
# Installs the Debian (or Ubuntu) packages that the whole test suite uses. `make run` needs none of them.
#   postgresql          a real PostgreSQL for the store's tests
#   redis-server        a real Redis for shared limits
#   prometheus          promtool, which checks deploy/prometheus
#   chromium + driver   the dashboard in a real browser
#   fonts-noto-cjk      Chinese text in its screenshots
set -euo pipefail

if ! command -v apt-get >/dev/null; then
  echo "error: this script is for Debian and Ubuntu (no apt-get here)" >&2
  exit 1
fi
packages=(postgresql redis-server prometheus chromium chromium-driver fonts-noto-cjk)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "all Debian packages are installed"
  exit 0
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
# The services that some of these packages bring are not started: tests start their own, on free ports.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
