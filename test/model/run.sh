#!/bin/sh
# Has spin visit every state of the models beside this file (ledger.pml, slots.pml, bound.pml, tree.pml), and shows that
# it finds each of a list of mistakes when they are made in them.
#
#   sh test/model/run.sh [--quick] [PATTERN...]
#
#   --quick   only the configurations that take a few seconds, and no mistakes
#   PATTERN   only the configurations and mistakes whose names match
#
# Takes spin and a C compiler ($CC, else cc), and up to 2 GiB of memory. Ends with 77 where spin is missing.
set -u
models=$(cd "$(dirname "$0")" && pwd) || exit 1
command -v spin >/dev/null || { echo "model: spin is not installed"; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work" || exit 1

quick=false
if [ "${1-}" = --quick ]; then
    quick=true
    shift
fi
patterns=$*
failed=0

# is_chosen NAME SPEED
is_chosen() {
    if $quick && [ "$2" = slow ]; then
        false
    elif [ -n "$patterns" ]; then
        for pattern in $patterns; do
            # shellcheck disable=SC2254 # it is a pattern
            case $1 in $pattern) return 0 ;; esac
        done
        false
    fi
}

# search SPEED MODEL FLAG...: builds the verifier and leaves what it says in ./out. GCC would take longer to optimize one
# that runs for seconds. -E: threads that have made all their calls are no deadlock.
search() {
    optimization=-O2
    [ "$1" = slow ] || optimization=-O0
    model=$2
    shift 2
    rm -f pan* out ./*.trail
    spin "$@" -a "$model" >out 2>&1 &&
        ${CC:-cc} $optimization -w -DSAFETY -DCOLLAPSE -DMEMLIM=2000 -o pan pan.c >>out 2>&1 &&
        ./pan -E -m5000000 -w22 >>out 2>&1
}

# Every state was visited and none was wrong: spin also ends well when it ran out of depth or memory.
is_complete() {
    grep -q 'Full statespace search' out && grep -q 'errors: 0$' out &&
        ! grep -Eq 'max search depth|not completed|reached -DMEMLIM|out of memory' out
}

# holds NAME SPEED MODEL FLAG...
holds() {
    name=$1 speed=$2 model=$3
    shift 3
    is_chosen "$name" "$speed" || return 0
    if search "$speed" "$models/$model.pml" "$@" && is_complete; then
        awk -v name="$name" '/states, stored/ { states = $1 } /total actual memory/ { memory = $1 }
            /elapsed time/ { seconds = $4 }
            END { printf "%-28s holds in %9d states  %6.1f s  %5d MiB\n", name, states, seconds, memory }' out
    else
        echo "$name: FAILED ($*)"
        grep -E 'rror|violated|reached -|not completed' out | head -5
        failed=$((failed + 1))
    fi
}

# finds NAME SPEED MODEL 'FLAG...' SED-SCRIPT: the script makes a mistake, which some assertion must notice.
finds() {
    is_chosen "$1" slow || return 0
    sed "$5" "$models/$3.pml" >mistake.pml
    # shellcheck disable=SC2086 # several flags
    if cmp -s mistake.pml "$models/$3.pml"; then
        echo "$1: FAILED (the mistake changes nothing: is the model not what it was?)"
    elif search "$2" mistake.pml $4; grep -q 'assertion violated' out; then
        awk -v name="$1" '/assertion violated/ { sub(/^.*assertion violated */, ""); sub(/ *\(at depth.*/, "")
            printf "%-28s is found: %s\n", name, substr($0, 1, 80) }' out
        return
    else
        echo "$1: FAILED (not found with $4)"
        grep -E 'rror' out | head -3
    fi
    failed=$((failed + 1))
}

# ---------------------------------------------------------------- configurations

holds one-thread          fast ledger -DTHREADS=1 -DPEAK=1 -DSIZES=3 -DRESIZES=3 -DBATCH=4 -DLIMIT=8
holds one-thread-switched fast ledger -DTHREADS=1 -DSWITCHES=1 -DRESIZES=2 -DEXITS=1
holds one-thread-limited  fast ledger -DTHREADS=1 -DSETS_LIMIT=1 -DRESIZES=2
holds two-threads         fast ledger -DPEAK=1
holds two-threads-batch   slow ledger -DPEAK=1 -DBATCH=4 -DLIMIT=6
holds exact-mode          fast ledger -DPEAK=1 -DEXACT=1 -DRESIZES=1
holds resizes             slow ledger -DPEAK=1 -DRESIZES=2 -DSIZES=1 -DLIMIT=2
holds resizes-few         fast ledger -DPEAK=1 -DRESIZES=1 -DSIZES=1 -DLIMIT=2
holds resets              fast ledger -DPEAK=1 -DRESETS=1 -DSIZES=1
holds switches            slow ledger -DSWITCHES=1 -DSIZES=1
holds limits              slow ledger -DSETS_LIMIT=1 -DSIZES=1 -DLIMIT=3 -DOTHER_LIMIT=1
holds no-limit            slow ledger -DSETS_LIMIT=1 -DSIZES=1 -DLIMIT=2 -DMOST=2
holds reader              fast ledger -DREADER=1 -DSIZES=1 -DLIMIT=4
holds reader-resizes      slow ledger -DREADER=1 -DSIZES=1 -DLIMIT=2 -DRESIZES=1
holds empties             fast ledger -DEMPTIES=1 -DSIZES=1 -DLIMIT=1
holds empties-more        slow ledger -DEMPTIES=1 -DSIZES=1 -DLIMIT=3
holds exits               fast ledger -DEXITS=1 -DSIZES=1 -DLIMIT=3 -DCALLS=5
holds exits-for-ever      slow ledger -DEXITS=1 -DSIZES=1 -DLIMIT=3
holds exits-switched      fast ledger -DTHREADS=1 -DEXITS=1 -DSETS_LIMIT=1 -DLIMIT=2 -DOTHER_LIMIT=1
holds exits-emptied       fast ledger -DTHREADS=1 -DEXITS=1 -DEMPTIES=1
holds slots-too-few       fast ledger -DEXITS=1 -DSLOTS=1 -DSIZES=1
holds deaths              fast ledger -DEXITS=1 -DDEATHS=1 -DSIZES=1 -DLIMIT=2 -DCALLS=4
holds deaths-too-few      fast ledger -DEXITS=1 -DDEATHS=1 -DSLOTS=1 -DSIZES=1 -DLIMIT=2
holds deaths-more         slow ledger -DEXITS=1 -DDEATHS=1 -DSIZES=1 -DLIMIT=3 -DCALLS=6
holds three-threads       slow ledger -DTHREADS=3 -DSIZES=1 -DLIMIT=3 -DCALLS=4
holds three-threads-exit  slow ledger -DTHREADS=3 -DSLOTS=2 -DEXITS=1 -DSIZES=1 -DLIMIT=2 -DCALLS=3
holds pool                fast slots
holds pool-grows          fast slots -DSLOTS=3
holds pool-three-threads  slow slots -DTHREADS=3
holds bound-two-setters   fast bound -DSETTERS=2
holds bound-two-owners    fast bound -DOWNERS=2
holds tree                fast tree -DCALLS=4
holds tree-one-thread     fast tree -DTHREADS=1 -DLIMIT=4 -DOWN_LIMIT=3 -DSIZES=2
holds tree-removed        fast tree -DREMOVES=1 -DACCOUNTS=1 -DCALLS=4 -DOWN_LIMIT=3
holds tree-reader         slow tree -DREADER=1 -DCALLS=3 -DLIMIT=2

# ---------------------------------------------------------------- mistakes

finds credit-before-charged fast ledger '' \
    's/want = want + need;/& credit[slot] = mine + want - need;/'
finds charged-before-credit fast ledger '' '/^inline ledger_give/,/^}/ {
    s/credit\[slot_\] = left/LATER/
    s/charged = charged - (by)/credit[slot_] = left/
    s/LATER/charged = charged - (by)/
}'
finds charged-without-exchange fast ledger '' '/^inline ledger_take/,/^}/ {
    s/:: charged == seen ->/:: true ->/
    s/charged = charged + want/charged = seen + want/
    s/:: else ->$/:: false ->/
}'
finds limit-outside-exchange fast ledger '' '/^inline ledger_take/,/^}/ {
    s/:: charged == seen ->/:: true ->/
    s/:: else ->$/:: false ->/
}'
finds drain-overwritten fast ledger '' 's/:: ceiling\[slot\] == SETTLING ->/:: true ->/'
finds switch-overwritten fast ledger '-DSWITCHES=1 -DSIZES=1' 's/:: ceiling\[slot\] == SETTLING ->/:: true ->/'
finds limit-overwritten fast ledger '-DSETS_LIMIT=1 -DSIZES=1' 's/:: ceiling\[slot\] == SETTLING ->/:: true ->/'
finds emptying-overwritten fast ledger '-DTHREADS=1 -DEMPTIES=1' 's/:: ceiling\[slot\] == SETTLING ->/:: true ->/'
finds emptying-lost fast ledger '-DTHREADS=1 -DEMPTIES=1' '/^inline ledger_settle/,/^}/ s/:: asked -> cache_adopt()/:: asked/'
finds emptying-too-soon fast ledger '-DTHREADS=1 -DEMPTIES=1' '/proctype emptier/,/^}/ {
    s/:: d_step {/:: ledger_request_drain(NONE); skip; d_step {/
    s/^        ledger_request_drain(NONE);//
}'
finds switch-not-drained fast ledger '-DSWITCHES=1 -DSIZES=1' '/proctype switcher/,/^}/ s/ledger_request_drain(NONE)/skip/'
finds switch-drained-too-soon fast ledger '-DSWITCHES=1 -DSIZES=1' '/proctype switcher/,/^}/ {
    s/:: d_step {/:: ledger_request_drain(NONE); skip; d_step {/
    s/^        ledger_request_drain(NONE);//
}'
finds exact-mode-keeps fast ledger '-DSWITCHES=1 -DSIZES=1' \
    's/(exact -> 0 : min(stock_max, (room_) \/ SHARE))/min(stock_max, (room_) \/ SHARE)/'
finds refused-keeps fast ledger '-DSWITCHES=1' '/^inline ledger_settle/,/^}/ { /:: got == 0 ->$/ { n; d; } }'
finds grows-above-limit fast ledger '-DTHREADS=1 -DSETS_LIMIT=1' 's/over = (seen > limit)/over = 0/'
finds grows-by-resize fast ledger '-DTHREADS=1 -DSETS_LIMIT=1 -DRESIZES=1' \
    's/:: up > 0 && rise != RISE_FORCED -> ledger_spendable/:: up > 0 \&\& rise == RISE -> ledger_spendable/'
finds spends-what-it-gave fast ledger '-DTHREADS=1 -DSETS_LIMIT=1' '/^inline ledger_spendable/,/^}/ s/^        mine = 0$/        skip/'
finds last-credit-above-limit fast ledger '-DTHREADS=1 -DSETS_LIMIT=1' 's/mine + down - up >= ceiling/mine + down - up > ceiling/'
finds late-charge-not-drained slow ledger '-DSETS_LIMIT=1 -DSIZES=2 -DLIMIT=4 -DOTHER_LIMIT=3 -DCALLS=5' \
    's/:: seen > limit -> ledger_request_drain(NONE)/:: false/'
finds peak-not-noted fast ledger '-DTHREADS=1 -DPEAK=1' '/^inline ledger_settle/,/^}/ s/ledger_note_peak(seen)/skip/'
finds peak-without-exchange fast ledger '-DPEAK=1' '/^inline ledger_note_peak/,/^}/ {
    s/:: peak == room ->/:: true ->/
    s/:: else -> room = peak/:: false/
}'
finds resize-not-noted fast ledger '-DTHREADS=1 -DPEAK=1 -DRESIZES=2' '/^inline resize_ends/,/^}/ s/ledger_note_peak(seen)/skip/'
finds failed-resize-keeps fast ledger '-DTHREADS=1 -DPEAK=1 -DRESIZES=2' \
    's/ledger_give(slot, 0, mine + down, 0)/kept = (resized -> 0 : down); ledger_give(slot, kept, mine + down - kept, 0); kept = 0/'
finds peak-of-reserved fast ledger '-DTHREADS=1 -DPEAK=1 -DRESIZES=3 -DLIMIT=6' \
    's/ledger_give(slot, 0, mine + down, 0)/ledger_give(slot, mine + down, 0, 0)/'
finds reset-looks-once fast ledger '-DPEAK=1 -DRESETS=1 -DSIZES=1' '/^inline ledger_reset_peak/,/^}/ s/:: charged > seen/:: false/'
finds slot-without-exchange fast ledger '-DEXITS=1' '/^inline slot_take_free/,/^}/ {
    s/:: ((taken >> i) & 1) == 0 ->/:: true ->/
    s/:: else -> i++/:: false/
}'
finds slot-keeps-credit fast ledger '-DEXITS=1' '/^inline slot_release/,/^}/ s/ledger_give(slot_, 0, held, 0)/skip/'
finds slot-before-credit fast ledger '-DEXITS=1 -DSLOTS=1' \
    '/^inline slot_release/,/^}/ s/held = credit\[slot_\];/& taken = taken \& ~(1 << slot_);/'
finds slot-keeps-ceiling fast ledger '-DTHREADS=1 -DEXITS=1 -DSETS_LIMIT=1' \
    '/^inline slot_release/,/^}/ s/ceiling\[slot_\] = 0;/ceiling[slot_] = BATCH;/'
finds dead-reaped-twice fast ledger '-DEXITS=1 -DDEATHS=1 -DSLOTS=1 -DSIZES=1' '/^inline slot_reap/,/^}/ s/owner\[dead\] = OWNED;//'
finds reader-below-zero fast ledger '-DREADER=1' 's/used = max(used, 0);//'
finds groups-without-exchange fast slots '' 's/changed = !unchanged\[_pid\]/changed = 0/'
finds groups-without-update fast slots '' '/^inline slot_claim/,/^}/ s/slot_groups_update()/skip/'
finds groups-before-taken fast slots '' '/^inline slot_take_free/,/^}/ s/:: else ->$/:: else -> slot = at; slot_groups_update(); slot = NONE;/
    /^inline slot_claim/,/^}/ s/slot_groups_update()/skip/'
finds reaps-who-claims fast slots '' 's/locked = 1/dead = 1/'
finds claims-without-mutex fast slots '' 's/owner\[slot\] != OWNED ->/true ->/'
finds reaped-without-credit fast slots '' '/^inline slot_release/,/^}/ s/^        credit\[slot_\] = 0$/        seen = 0/'
finds bound-looks-once fast bound '-DSETTERS=2' 's/:: found == wanted -> break/:: true -> break/'
finds cache-bound-looks-once fast bound '-DSETTERS=2' 's/:: cache_max == wanted -> break/:: true -> break/'
finds tree-refused-below-kept fast tree '-DCALLS=4' '/^inline tree_raise/,/^}/ s/:: refusing == PARENT -> account_lower(x, n)/:: refusing == PARENT/'
finds tree-limit-of-one fast tree '-DTHREADS=1' 's/:: charged\[PARENT\] + (n) <= LIMIT ->/:: true ->/; s/:: else -> refusing = PARENT/:: false/'
finds tree-sibling-kept fast tree '-DTHREADS=1' '/^inline tree_drain/,/^}/ s/credit\[at(_pid, other_of(x))\] != 0 ->/false ->/'
finds tree-charged-before-credit fast tree '-DCALLS=4' '/^inline stock_give/,/^}/ {
    s/^    atomic {/    tree_lower(x_, by); atomic {/
    s/^    tree_lower(x_, by)$/    skip/
}'
finds tree-state-not-looked-at fast tree '-DREMOVES=1 -DACCOUNTS=1 -DCALLS=4' '/^inline tree_raise/,/^}/ s/look_at_state(x);/skip;/'
finds tree-reused-with-credit fast tree '-DREMOVES=1 -DACCOUNTS=1 -DCALLS=4' 's/charged\[A\] == 0 ->/true ->/'

[ "$failed" = 0 ] || { echo "model: $failed failed"; exit 1; }
