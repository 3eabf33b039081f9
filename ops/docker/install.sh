#!/bin/sh
# `install.sh ROLE DEVICE`: puts presift for one role into /opt/presift, a virtual environment. Run by the Dockerfile and nobody else.
#   cpu: the packages of ops/locks/images/ROLE.txt and no others. TORCH_INDEX is where torch's CPU wheels are, if not where all else is.
#   gpu: on top of an image that has torch and SGLang for CUDA: they stay as they are, and only what is missing is added.
# Reads PRESIFT_LOCKS (the folder of ROLE.txt) and PRESIFT_WHEEL (that of presift's wheel).
set -eu
role="$1" device="$2"
target="${PRESIFT_VENV:-/opt/presift}"
pip="$target/bin/python -m pip --disable-pip-version-check --no-input"
wheel="$(echo "$PRESIFT_WHEEL"/presift-*.whl)"

case "$device" in
cpu)
  python3 -m venv "$target"
  # What the environment is born with is not in the lock.
  $pip uninstall --yes --quiet setuptools
  $pip install --quiet --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement "$PRESIFT_LOCKS/$role.txt"
  $pip install --quiet --no-deps --no-index "$wheel"
  ;;
gpu)
  python3 -m venv --system-site-packages "$target"
  there="$(mktemp)"
  # Files and commits cannot be constraints.
  $pip freeze --quiet | grep -E '^[A-Za-z0-9._-]+==' > "$there"
  $pip install --quiet --constraint "$there" "$wheel[$role]"
  rm "$there"
  ;;
*)
  echo "install.sh: DEVICE is cpu or gpu, not $device" >&2
  exit 2
  ;;
esac

# `models` downloads with pip; no other service installs anything.
test "$role" = models || $pip uninstall --yes --quiet pip
