#!/bin/sh
# Prints the first Python 3.10 to 3.12 found; $1, if given, is tried alone.
check='import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12)))'
for candidate in ${1:-python3.11 python3.12 python3.10 python3}; do
  if "$candidate" -c "$check" 2>/dev/null; then
    command -v "$candidate"
    exit 0
  fi
done
found=$("${1:-python3}" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || echo none)
echo "error: Tidegate needs Python 3.10 to 3.12, found: $found (name one with: make run PYTHON=python3.11)" >&2
exit 1
