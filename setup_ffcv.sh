#!/usr/bin/env bash
# Install FFCV into .venv where that can be done; where it cannot, say what would do it, and go on without: exit 0.
#
# FFCV comes as source. It needs a C++ compiler, libjpeg-turbo and OpenCV's two modules core and imgproc, which are Debian
# packages; as root they are installed here. Debian's full libopencv-dev would bring two hundred packages more, so where it
# is not installed the build is shown those two modules alone.
set -euo pipefail
cd "$(dirname "$0")"
python=.venv/bin/python
build=build/ffcv
packages=(g++ pkg-config libturbojpeg0-dev libopencv-imgproc-dev libgl1 libglib2.0-0)

go_on_without() {
    echo "FFCV is not installed: $1. Everything else works; for --data.loader ffcv: $2"
    exit 0
}

have_what_the_build_needs() {
    command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists libturbojpeg &&
        { pkg-config --exists opencv4 || [ -e /usr/include/opencv4/opencv2/imgproc.hpp ]; } &&
        ldconfig -p | grep -q 'libGL\.so\.1' && ldconfig -p | grep -q 'libgthread-2\.0\.so\.0' && [ -e "$python_header" ]
}

logged() {
    "$@" >>"$build/log" 2>&1
}

"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("ffcv") is None)' && exit 0
mkdir -p "$build"
: >"$build/log"
python_header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
[ -e "$python_header" ] || packages+=("$("$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])')")

if ! have_what_the_build_needs; then
    command="apt-get update && apt-get install --no-install-recommends ${packages[*]}"
    command -v apt-get >/dev/null || go_on_without "no apt-get" "install g++, pkg-config, libjpeg-turbo and OpenCV, then: make ffcv"
    [ "$(id -u)" = 0 ] || go_on_without "its Debian packages need root" "sudo sh -c '$command', then: make ffcv"
    echo "installing the Debian packages that FFCV is built with"
    export DEBIAN_FRONTEND=noninteractive
    { logged apt-get -o DPkg::Lock::Timeout=120 update &&
        logged apt-get -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends "${packages[@]}"; } ||
        go_on_without "apt-get failed (see $build/log)" "$command, then: make ffcv"
fi

if ! pkg-config --exists opencv4; then
    mkdir -p "$build/include/opencv2"
    printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$build/include/opencv2/opencv.hpp"
    printf '%s\n' "Name: opencv4" "Description: the modules core and imgproc" "Version: 4" \
        "Cflags: -I$PWD/$build/include -I/usr/include/opencv4" "Libs: -lopencv_imgproc -lopencv_core" >"$build/opencv4.pc"
    export PKG_CONFIG_PATH="$PWD/$build${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
fi
echo "building FFCV"
logged "$python" -m pip --disable-pip-version-check install --constraint requirements.lock --editable '.[ffcv]' ||
    go_on_without "its build failed (see $build/log)" "make ffcv tries again"
