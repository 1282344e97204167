#!/bin/sh
# Prints the first Python 3.10 to 3.12 found that can make an environment; $1, if given, is tried alone.
version='import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12)))'
without=
for candidate in ${1:-python3.11 python3.12 python3.10 python3}; do
  "$candidate" -c "$version" 2>/dev/null || continue
  if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
    command -v "$candidate"
    exit 0
  fi
  without=${without:-$candidate}
done
if [ -n "$without" ]; then
  package=$("$without" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  echo "error: $without cannot make an environment (Debian and Ubuntu: apt-get install $package)" >&2
  exit 1
fi
found=$("${1:-python3}" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || echo none)
echo "error: Tidegate needs Python 3.10 to 3.12, found: $found (name one with: make run PYTHON=python3.11)" >&2
exit 1
