# shellcheck shell=sh
# Sourced by the launchers beside it. They set $root, the project's physical path, and call
#
#     need_env [EXTRA]
#
# which makes sure that $venv holds what this checkout asks for, the extra `report` included, optionally with others
# (EXTRA,EXTRA).
# A start that finds everything in place costs a few milliseconds and starts no Python.

venv=${root:?set by the launcher}/.venv

_fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 5
}

# All that decides what is in the environment. It is kept whole rather than hashed: a shell compares a few
# kilobytes faster than it starts a hashing program. The path belongs to it because an environment cannot
# be moved: its scripts name their interpreter by absolute path.
_recipe() {
    printf '%s\n' "$root"
    cat "$root/pyproject.toml" "$root/setup.cfg" "$root/constraints.txt"
}

_ready() {
    made_from=$venv/.made-from${1:+-$1}
    [ -f "$made_from" ] && [ -x "$venv/bin/python" ] && [ ! -e "$venv/.unfinished" ] && [ "$(_recipe)" = "$(cat "$made_from")" ]
}

need_env() {
    _ready "${1:-}" || _set_up "${1:-}" || exit 5
}

# Sets $extra to what a command line needs beyond the rest: it is installed when it is first asked for.
find_extras() {
    extra=
    case " $* " in
        *" --quantize"*) extra=pipeline,quantize ;;
        " generate "* | *" --images"*) extra=pipeline ;;
    esac
    for word in "$@"; do
        case $word in
            --cluster*) needed=cluster ;;
            hf://* | *=hf://* | tcp://* | tls://*) continue ;; # the hub's, or a scheduler
            [a-z]*://* | --*=[a-z]*://*) needed=remote ;;
            *) continue ;;
        esac
        case ",$extra," in *",$needed,"*) ;; *) extra=${extra:+$extra,}$needed ;; esac
    done
}

# ---- From here on: only what the first start needs, or the first one after the recipe has changed. ----

# Prints the interpreter's own path, or nothing if it is older than 3.10 or does not run. Its own path, since
# a name on PATH may be a wrapper that chooses by the directory it is called from.
_interpreter() {
    "$1" -I -c 'import sys; sys.version_info >= (3, 10) and print(sys.executable)' 2>/dev/null </dev/null
}

# What the user calls `python3` comes first, even where a newer one is installed: the newest Python is often
# too new to have a torch.
_find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$(_interpreter "$PYTHON")
        [ -n "$python" ] || _fail "PYTHON=$PYTHON is not a Python 3.10 or newer"
        return
    fi
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        python=$(_interpreter "$name")
        [ -z "$python" ] || return 0
    done
    _fail "needs Python 3.10 or newer, found none on PATH; set PYTHON to one"
}

# Waits until no other launch is setting up. The lock sits on the open file, not on the process that asked for
# it: this shell and all that it starts hold it until the last of them has ended, however it ended.
_lock() {
    "$python" -I -c '
import fcntl, sys
try:
    fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(sys.argv[1] + ": waiting for another launch to set up", file=sys.stderr)
    fcntl.flock(0, fcntl.LOCK_EX)
except OSError:
    pass  # a file system without locks: go on without
' "${0##*/}" <&9
}

# Some systems ship Python without the pip that a new environment gets; then the system's own pip serves.
_pip() {
    if "$venv/bin/python" -I -m pip --version >/dev/null 2>&1; then
        "$venv/bin/python" -I -m pip "$@"
    else
        "$python" -m pip --python "$venv/bin/python" "$@"
    fi
}

_install() {
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -I -m venv "$venv" || "$python" -I -m venv --without-pip "$venv" || return
    fi
    # torch first and by itself: whatever build of it pip is set up to prefer, the rest then keeps it.
    _pip install -c constraints.txt "$(grep -m 1 '^torch==' constraints.txt)" &&
        # setuptools before the project, so that the build uses the pinned one and fetches none of its own.
        _pip install -c constraints.txt setuptools &&
        _pip install -c constraints.txt --no-build-isolation -e ".[report${1:+,$1}]"
}

# In a subshell of its own: the lock, the directory and the variables end with it.
_set_up() (
    [ -w "$root" ] || _fail "cannot set up $venv: $root is not writable"
    unset PYTHONPATH PYTHONHOME
    export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    _find_python
    exec 9>"$root/.venv.lock"
    _lock
    ! _ready "$1" || exit 0 # while this one waited, another has done it

    rmdir "$venv" 2>/dev/null # an empty one is no one's
    if [ -e "$venv/.unfinished" ]; then
        rm -rf "$venv" # a set-up that was interrupted
    elif [ -f "$venv/.made-from" ]; then
        IFS= read -r made_for <"$venv/.made-from"
        [ "$made_for" = "$root" ] && [ -n "$(_interpreter "$venv/bin/python")" ] || rm -rf "$venv"
    elif [ -e "$venv" ] && [ -z "$(_interpreter "$venv/bin/python")" ]; then
        # Not made here, and not an environment that could be completed: not ours to delete.
        _fail "$venv is in the way and holds no working Python 3.10 or newer; remove it or move it away"
    fi

    if [ -x "$venv/bin/python" ]; then
        printf '%s: bringing %s up to date, once\n' "${0##*/}" "$venv" >&2
    else
        printf '%s: setting up %s, once; this takes a minute or more\n' "${0##*/}" "$venv" >&2
    fi
    recipe=$(_recipe) # as it is now: an edit during the set-up must lead to another
    log=$venv/setup.log
    cd "$root" || exit
    mkdir -p "$venv"
    touch "$venv/.unfinished" || exit
    for stamp in "$venv/.made-from"*; do # those of other extras stay, if they are of this recipe
        [ ! -f "$stamp" ] || [ "$recipe" = "$(cat "$stamp")" ] || rm -f "$stamp"
    done
    if ! _install "$1" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        _fail "setting up failed; the whole log is $log"
    fi
    printf '%s\n' "$recipe" >"$venv/.made-from"
    [ -z "$1" ] || printf '%s\n' "$recipe" >"$venv/.made-from-$1"
    rm -f "$venv/.unfinished"
)
