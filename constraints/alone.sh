# Sourced by what installs. `alone NAME STAMP` waits for another NAME in this folder, since two would install over each
# other, and ends the script where STAMP is there then. pip holds the lock as long as it lives, whatever started it.
alone() {
    mkdir -p .cache
    exec 9>".cache/$1.lock"
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        echo "[$1] waiting for another set-up in this folder"
        flock 9
    fi
    if [ -e "$2" ]; then
        exit 0
    fi
}
