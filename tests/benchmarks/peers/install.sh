#!/usr/bin/env bash
# Installs the loaders that tests/benchmarks/loaders.py compares with, each into an environment of its own.
#
#     bash tests/benchmarks/peers/install.sh FOLDER [NAME...]
#
# Names: torchvision timm webdataset datasets litdata streaming dali ffcv; all of them by default. What is there already,
# in these versions, is left alone. One that fails does not stop the others; the exit status says that one did.
# torch is large, so FOLDER/torch holds it once, and the others see it behind their own packages.
# PYTHON names the interpreter (default python3.11). FFCV is built from its sources and needs Debian's packages
# libopencv-dev, libturbojpeg0-dev, pkg-config and g++, which are installed with apt-get if they are missing.
set -uo pipefail

ALL=(torchvision timm webdataset datasets litdata streaming dali ffcv)
declare -A WANTED=(
  [torch]="torch==2.15.0 torchvision==0.29.2 numpy pillow"
  [torchvision]=""
  [timm]="timm==1.0.31"
  [webdataset]="webdataset==1.0.2"
  [datasets]="datasets==5.2.0"
  [litdata]="litdata==0.2.76"
  [streaming]="mosaicml-streaming==0.13.0 numpy<2.2"
  [dali]="nvidia-dali-cuda120==2.4.0"
  [ffcv]="ffcv==1.0.2 numba opencv-python-headless terminaltables pytorch-pfn-extras fastargs assertpy tqdm psutil pandas"
)
APT=(libopencv-dev libturbojpeg0-dev pkg-config g++)

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  sed -n '2,/^set /p' "$0" | sed -n 's/^# \{0,1\}//p'
  exit 2
fi
mkdir -p "$1" && FOLDER=$(cd "$1" && pwd) || exit 2
shift
[ $# -gt 0 ] || set -- "${ALL[@]}"
PYTHON=${PYTHON:-python3.11}

say() { printf '%s\n' "$*"; }

# make NAME: an environment with what is WANTED, and a stamp that says so, written last.
make() {
  local name=$1 place=$FOLDER/$1 packages
  read -ra packages <<<"${WANTED[$name]}"
  if [ -f "$place/installed.txt" ] && [ "$(head -n 1 "$place/installed.txt")" = "# ${WANTED[$name]}" ]; then
    say "$name: is there"
    return 0
  fi
  say "$name: installing ${WANTED[$name]:-nothing but torch}"
  rm -rf "$place"
  "$PYTHON" -m venv "$place" || return 1
  if [ "$name" != torch ]; then
    "$FOLDER/torch/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
      >"$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-behind.pth" || return 1
  fi
  if [ "$name" = ffcv ]; then
    install_ffcv "$place" "${packages[@]}" || return 1
  elif [ ${#packages[@]} -gt 0 ]; then
    "$place/bin/python" -m pip install -qq --disable-pip-version-check "${packages[@]}" || return 1
  fi
  { say "# ${WANTED[$name]}" && "$place/bin/python" -m pip freeze --disable-pip-version-check; } >"$place/installed.new" &&
    mv "$place/installed.new" "$place/installed.txt" || return 1
  say "$name: installed"
}

# FFCV's sources name their own requirements wrongly (a second OpenCV), so they go in by hand, and it without them.
install_ffcv() {
  local place=$1 missing=() name
  shift
  for name in "${APT[@]}"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    say "ffcv: apt-get install ${missing[*]}"
    "${sudo[@]}" apt-get update -q >/dev/null &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" \
        >/dev/null || return 1
  fi
  local pip=("$place/bin/python" -m pip install -qq --disable-pip-version-check)
  "${pip[@]}" setuptools wheel "${@:2}" &&
    "${pip[@]}" --no-deps --no-build-isolation --no-binary ffcv "$1"
}

main() {
  local failed=() name
  for name in torch "$@"; do
    if [ -z "${WANTED[$name]+there}" ]; then
      say "$name: no such loader; there are ${ALL[*]}"
      failed+=("$name")
    elif ! make "$name"; then
      say "$name: FAILED"
      failed+=("$name")
      [ "$name" != torch ] || break
    fi
  done
  if [ ${#failed[@]} -gt 0 ]; then
    say "failed: ${failed[*]}"
    exit 1
  fi
}

# In one piece: bash reads a script while it runs it, and it may change meanwhile.
main "$@"
exit
