#!/bin/sh
# Installs one role into the virtual environment /opt/presift. Only the Dockerfile runs it, in two steps:
#   install.sh packages ROLE DEVICE    presift's dependencies
#   install.sh presift ROLE DEVICE     presift itself
# cpu: exactly the packages of ops/locks/images/ROLE.txt. TORCH_INDEX is an additional index with torch's CPU wheels.
# gpu: on an image that has torch and SGLang for CUDA: keeps their versions and adds only missing packages.
# Reads PRESIFT_LOCKS (the folder of ROLE.txt) and PRESIFT_WHEEL (the folder of presift's wheel).
set -eu
step="$1" role="$2" device="$3"
target="${PRESIFT_VENV:-/opt/presift}"
pip="$target/bin/python -m pip --disable-pip-version-check --no-input"

case "$step $device" in
"packages cpu")
  python3 -m venv "$target"
  # A new environment has setuptools, which is not in the lock.
  $pip uninstall --yes --quiet setuptools
  $pip install --quiet --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement "$PRESIFT_LOCKS/$role.txt"
  ;;
"packages gpu")
  python3 -m venv --system-site-packages "$target"
  ;;
"presift cpu")
  $pip install --quiet --no-deps --no-index "$PRESIFT_WHEEL"/presift-*.whl
  ;;
"presift gpu")
  there="$(mktemp)"
  # pip does not accept files and commits as constraints.
  $pip freeze --quiet | grep -E '^[A-Za-z0-9._-]+==' > "$there"
  $pip install --quiet --constraint "$there" "$(echo "$PRESIFT_WHEEL"/presift-*.whl)[$role]"
  rm "$there"
  ;;
*)
  echo "install.sh: no step $step for device $device" >&2
  exit 2
  ;;
esac

# `models` downloads with pip; the other services do not need it.
if [ "$step" = presift ] && [ "$role" != models ]; then
  $pip uninstall --yes --quiet pip
fi
