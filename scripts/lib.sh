# What scripts/tikhonov and scripts/test share: find or install libtorch, build the binary. Source it with $root set.

torch_version=2.11.0
cache="${XDG_CACHE_HOME:-$HOME/.cache}/tikhonov"
cache_venv="$cache/torch-$torch_version"
target="${CARGO_TARGET_DIR:-$root/target}"
binary="$target/release/tikhonov"
stamp="$target/.libtorch"
cargo_config="$root/.cargo/config.toml"
config_mark="# Written by scripts/tikhonov: plain cargo commands use the same libtorch. Delete this line to keep your own."

say() { printf 'tikhonov: %s\n' "$*" >&2; }

# die MESSAGE CURE: the machine lacks something.
die() {
    printf 'error: %s\n  cure: %s\n' "$1" "$2" >&2
    exit 2
}

# Everything that the choice of libtorch depends on; computed without starting a process.
choice() {
    local python
    python=$(type -P python3) || python=
    printf '%s|' "${LIBTORCH:-}" "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}" "${PYENV_VERSION:-}" "$cache" "$python"
}

# version_of TORCH_FOLDER: the version of a libtorch or a Python torch, without running either.
version_of() {
    if [[ -f $1/build-version ]]; then
        head -n 1 "$1/build-version"
    elif [[ -f $1/version.py ]]; then
        sed -n "s/^__version__ = ['\"]\([^'\"]*\)['\"].*/\1/p" "$1/version.py"
    fi
}

has_libraries() { [[ -e $1/lib/libtorch_cpu.so && -e $1/lib/libc10.so && -d $1/include/ATen ]]; }

# The folder of the active Python's torch if it is of our version; torch is looked up, never imported.
active_torch() {
    local python folder
    for python in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} python3; do
        folder=$("$python" -c 'import importlib.util, os
spec = importlib.util.find_spec("torch")
print(os.path.dirname(os.path.realpath(spec.origin)) if spec and spec.origin else "")' 2>/dev/null) || continue
        if [[ -n $folder && $(version_of "$folder") == "${torch_version%.*}".* ]] && has_libraries "$folder"; then
            printf '%s\n' "$folder"
            return 0
        fi
    done
    return 1
}

# The torch folder inside a virtual environment.
torch_in() {
    local folder
    for folder in "$1"/lib/python3.*/site-packages/torch; do
        [[ -d $folder ]] && printf '%s\n' "$folder" && return 0
    done
    return 1
}

# Whether pip finished: the RECORD of a wheel is the last file that it writes.
is_installed() {
    local site
    site=$(torch_in "$1") && site=${site%/torch} || return 1
    [[ $(version_of "$site/torch") == "$torch_version"* ]] && has_libraries "$site/torch" || return 1
    compgen -G "$site/torch-$torch_version*.dist-info/RECORD" >/dev/null || return 1
    compgen -G "$site/numpy-*.dist-info/RECORD" >/dev/null || return 1
    [[ $(uname -s) != Linux || -f $site/nvidia/cu13/include/crt/host_config.h ]]
}

# A Python that can make a virtual environment and for which torch exists.
find_python() {
    local python usable=
    for python in python3 python3.13 python3.12 python3.11 python3.10; do
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null || continue
        usable=$python
        "$python" -c 'import venv, ensurepip' 2>/dev/null && printf '%s\n' "$python" && return 0
    done
    if [[ -z $usable ]]; then
        die "no Python from 3.10 to 3.14 (libtorch comes from its package index)" \
            "install one (Debian, Ubuntu: apt install python3 python3-venv), or set LIBTORCH to a libtorch $torch_version"
    fi
    die "$usable has no venv module" "install it (Debian, Ubuntu: apt install python3-venv)"
}

# with_lock FILE COMMAND…: one process at a time, where the system has flock.
with_lock() {
    local file=$1
    shift
    if ! command -v flock >/dev/null; then
        "$@"
        return
    fi
    (
        exec 9>"$file"
        if ! flock -n 9; then
            say "waiting for another process that is installing into $cache"
            flock 9
        fi
        "$@"
    )
}

install_torch() {
    [[ -f $cache_venv/.complete ]] && return 0
    if ! is_installed "$cache_venv"; then
        local python free extra=()
        python=$(find_python)
        free=$(df -Pk "$cache" | awk 'NR == 2 { print int($4 / 1048576) }')
        [[ $(uname -s) == Linux ]] && extra=("nvidia-cuda-crt==13.0.*")
        say "installing libtorch $torch_version into $cache_venv (once; about 2.5 GB to download, 5 GB on disk)"
        [[ $free -ge 8 ]] || say "only $free GB are free there: if that is too little, set XDG_CACHE_HOME to a larger disk"
        rm -rf "$cache_venv"
        "$python" -m venv "$cache_venv" >&2
        "$cache_venv/bin/python" -m pip install --disable-pip-version-check --no-input \
            "torch==$torch_version" "${extra[@]}" numpy >&2 ||
            die "pip could not install torch $torch_version (its own message stands above)" \
                "check the network and the disk and run this again, or set LIBTORCH to a libtorch $torch_version"
        is_installed "$cache_venv" ||
            die "the torch that pip installed into $cache_venv is incomplete" "remove that folder and run this again"
    fi
    touch "$cache_venv/.complete"
}

# Sets $libtorch: LIBTORCH, else the active Python's torch, else the one in the user's cache (installed if need be).
find_libtorch() {
    if [[ -n ${LIBTORCH:-} ]]; then
        [[ -d $LIBTORCH ]] || die "LIBTORCH=$LIBTORCH is no folder" "set it to a libtorch $torch_version, or unset it"
        libtorch=$(cd -P -- "$LIBTORCH" && pwd)
        local version
        version=$(version_of "$libtorch")
        has_libraries "$libtorch" && [[ $version == "${torch_version%.*}".* ]] ||
            die "LIBTORCH=$LIBTORCH holds ${version:+libtorch }${version:-no libtorch that says its version}" \
                "set it to a libtorch $torch_version (the folder with lib/ and include/), or unset it"
    elif ! libtorch=$(active_torch); then
        mkdir -p "$cache"
        with_lock "$cache/.lock" install_torch
        libtorch=$(torch_in "$cache_venv")
    fi
}

need_compilers() {
    if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH="$HOME/.cargo/bin:$PATH"
    fi
    command -v cargo >/dev/null ||
        die "no Rust: cargo is not in PATH" "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    local have want
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    have=$(cd "$root" && cargo --version | cut -d ' ' -f 2)
    [[ $(printf '%s\n' "$want" "$have" | sort -V | head -n 1) == "$want" ]] ||
        die "Rust $have is too old: $want or newer is needed" "rustup update stable (see https://rustup.rs)"
    local compiler
    for compiler in "${CXX:-c++}" "${CC:-cc}"; do
        command -v "${compiler%% *}" >/dev/null ||
            die "no C++ compiler: $compiler is not in PATH" \
                "install one (Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc-c++)"
    done
}

# Lets a developer's own cargo commands find the same libtorch, so that they do not compile torch-sys again.
write_cargo_config() {
    local text
    text=$(printf '%s\n[env]\nLIBTORCH = "%s"' "$config_mark" "$libtorch")
    if [[ ! -e $cargo_config ]]; then
        mkdir -p "$root/.cargo"
    elif [[ $(head -n 1 "$cargo_config") != "$config_mark" || $(<"$cargo_config") == "$text" ]]; then
        return 0
    fi
    printf '%s\n' "$text" >"$cargo_config"
}

# Whether the binary is newer than everything that it is made of, and made with the libtorch that would be chosen now.
is_fresh() {
    [[ -x $binary && -f $stamp ]] || return 1
    local libtorch_used choice_used
    { read -r libtorch_used && read -r choice_used; } <"$stamp" || return 1
    [[ -e $libtorch_used/lib/libtorch_cpu.so && $choice_used == "$(choice)" ]] || return 1
    [[ -z $(find "$root"/{src,models,configs,build.rs,Cargo.toml,Cargo.lock} -newer "$stamp" -print -quit) ]]
}

# Finds libtorch (sets and exports LIBTORCH), checks the compilers.
set_up() {
    need_compilers
    find_libtorch
    write_cargo_config
    unset LIBTORCH_USE_PYTORCH
    chosen=$(choice)
    export LIBTORCH="$libtorch"
}

build() {
    set_up
    mkdir -p "$target"
    # The stamp is as old as the start of the build: what is edited meanwhile is newer.
    printf '%s\n%s\n' "$libtorch" "$chosen" >"$stamp.new"
    [[ -x $binary ]] || say "building the release binary (once; about 5 minutes on 2 cores)"
    (cd "$root" && cargo build --release --locked >&2)
    mv "$stamp.new" "$stamp"
}
