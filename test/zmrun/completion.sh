#!/bin/bash
# zmrun's completion of command lines: completion.sh SOURCE-DIRECTORY. Ends with 77 where bash-completion is not there.
library=/usr/share/bash-completion/bash_completion
if [ ! -f $library ]; then
    echo "skipped: there is no bash-completion"
    exit 77
fi
# shellcheck disable=SC1090
source $library
# shellcheck disable=SC1091
source "$1/zmrun/completion.bash"
cd "$1" || exit 1
failed=0

# check LINE WORD...: what the line, in which the cursor is at its end, may be completed by.
check() {
    local line=$1
    shift
    read -ra COMP_WORDS <<<"$line"
    COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _zmrun zmrun "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
    local found
    found=$(printf '%s\n' "${COMPREPLY[@]}" | sed 's/ *$//' | sort -u | tr '\n' ' ')
    if [ "$found" != "$* " ]; then
        echo "'$line' is completed by '$found', not '$*'"
        failed=1
    fi
}

check 'zmrun --li' --limit=
check 'zmrun -l 5' 50% 512M
check 'zmrun --limit 64M --ex' --exact
check 'zmrun --profile-' --profile-at= --profile-interval=
check 'zmrun --profile-at e' end
check 'zmrun -b je' jemalloc
check 'zmrun --profile READ' README.md
check 'zmrun -P x --ex' --exact
check 'zmrun --json READ' README.md
check 'zmrun cat READ' README.md
check 'zmrun --quiet xzca' xzcat
check 'zmrun -- xzca' xzcat
check 'zmrun -q git --ver' --version
exit $failed
