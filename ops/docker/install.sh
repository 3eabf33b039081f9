#!/bin/sh
# Fills /opt/presift, a virtual environment, for one role. Run by the Dockerfile and nobody else, in two steps:
#   install.sh packages ROLE DEVICE    what presift needs
#   install.sh presift ROLE DEVICE     presift itself
# cpu: the packages of ops/locks/images/ROLE.txt and no others. TORCH_INDEX is where torch's CPU wheels are, if not where all else is.
# gpu: on top of an image that has torch and SGLang for CUDA: they stay as they are, and only what is missing is added.
# Reads PRESIFT_LOCKS (the folder of ROLE.txt) and PRESIFT_WHEEL (that of presift's wheel).
set -eu
step="$1" role="$2" device="$3"
target="${PRESIFT_VENV:-/opt/presift}"
pip="$target/bin/python -m pip --disable-pip-version-check --no-input"

case "$step $device" in
"packages cpu")
  python3 -m venv "$target"
  # What the environment is born with is not in the lock.
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
  # Files and commits cannot be constraints.
  $pip freeze --quiet | grep -E '^[A-Za-z0-9._-]+==' > "$there"
  $pip install --quiet --constraint "$there" "$(echo "$PRESIFT_WHEEL"/presift-*.whl)[$role]"
  rm "$there"
  ;;
*)
  echo "install.sh: no step $step for device $device" >&2
  exit 2
  ;;
esac

# `models` downloads with pip; no other service installs anything.
if [ "$step" = presift ] && [ "$role" != models ]; then
  $pip uninstall --yes --quiet pip
fi
