# Sourced by the scripts that need Python, in the root of the repository: the virtual environment in target/venv.

venv=target/venv
requirements=tests/e2e/requirements.txt

# Installs a Debian package if that is possible here.
install_package() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "missing: package $1" >&2
        return 1
    fi
    echo "installing $1"
    # On a bare machine nothing is known of any package yet.
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends "$1")
    "${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
}

# Brings the virtual environment to what the requirements say. Does nothing if it is there already.
make_venv() {
    if cmp --silent "$requirements" "$venv/requirements.txt"; then
        return
    fi
    command -v python3 >/dev/null || install_package python3 || return
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_package python3-venv || return
    python3 -m venv "$venv" || return
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements" || return
    cp "$requirements" "$venv/requirements.txt"
}
