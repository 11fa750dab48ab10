/* The pool of slots of zmalloc.c as a state machine, for spin; run.sh checks it. ledger.pml says how the two are written.
 *
 * Threads claim a slot, take credit for it, give it back with the slot, or die with it; any of them may look for the dead
 * at any time, and the pool grows when it is full. A group has one slot here, so that each slot taken or released may
 * change which groups readers have to walk. A slot never has two owners, the dead's credit comes back, no slot whose owner
 * may have credit is hidden from readers, and at rest they see all credit that there is. Nothing is in use here: at rest
 * all that is charged is credit.
 *
 * The mutex of a slot is robust: of those who try to lock that of a dead owner one is told so, and it has the lock then. */

#ifndef THREADS
#define THREADS 2
#endif
#ifndef SLOTS
#define SLOTS 2
#endif

#define NONE SLOTS
#define FREE 0
#define OWNED 1
#define DEAD 2

bit taken[SLOTS];
bit credit[SLOTS];
byte owner[SLOTS]; /* the mutex */
byte there = 1;    /* slots of the pool; each is there before its bit in `taken` is set */
byte charged;
byte groups = 1;
bit unchanged[THREADS]; /* no update of `groups` has succeeded since the thread loaded it: the C code counts them */

/* the checks': */
byte calls; /* in flight */
bit owned[SLOTS];
bit claimed[SLOTS]; /* its owner has returned from slot_claim() */

/* What readers see is what there is. */
inline check_rest()
{
    i = 0;
    seen = 0;
    do
    :: i < groups ->
        seen = seen + (taken[i] -> credit[i] : 0);
        i++
    :: else -> break
    od;
    i = 0;
    assert(calls != 0 || seen == charged);
    seen = 0
}

/* Out: result, at least 1. */
inline slot_groups_wanted(result)
{
    result = 1;
    do
    :: atomic {
            i < there ->
            if
            :: taken[i] -> result = i + 1
            :: else
            fi;
            i++
        }
    :: i >= there -> break
    od;
    i = 0
}

/* Its exchange may hide no slot whose owner has come so far that it may hold credit. */
inline slot_groups_update()
{
    do
    :: unchanged[_pid] = 1;
        slot_groups_wanted(last);
        d_step {
            changed = !unchanged[_pid];
            if
            :: changed
            :: else ->
                groups = last;
                do
                :: i < THREADS ->
                    unchanged[i] = 0;
                    i++
                :: else -> break
                od;
                i = 0;
                do
                :: last < SLOTS ->
                    assert(!claimed[last]);
                    last++
                :: else -> break
                od
            fi;
            last = 0
        }
        if
        :: changed -> changed = 0
        :: else -> break
        fi
    od
}

inline slot_release(slot_)
{
    d_step {
        assert(owned[slot_] && owner[slot_] == OWNED);
        seen = credit[slot_];
        credit[slot_] = 0
    }
    d_step {
        assert(charged >= seen);
        charged = charged - seen;
        seen = 0
    }
    d_step {
        owned[slot_] = 0;
        claimed[slot_] = 0;
        taken[slot_] = 0
    }
    slot_groups_update();
    owner[slot_] = FREE
}

/* Out: reaped. */
inline slot_reap()
{
    do
    :: at < there ->
        if
        :: !taken[at]
        :: else ->
            atomic { /* tries to lock */
                if
                :: owner[at] == DEAD ->
                    owner[at] = OWNED;
                    assert(!owned[at]);
                    owned[at] = 1;
                    dead = 1
                :: owner[at] == FREE ->
                    owner[at] = OWNED;
                    locked = 1
                :: else
                fi
            }
            if
            :: locked ->
                locked = 0;
                owner[at] = FREE
            :: dead ->
                dead = 0;
                slot_release(at);
                reaped = 1
            :: else
            fi
        fi;
        at++
    :: else -> break
    od;
    at = 0
}

/* Out: slot, or NONE. */
inline slot_take_free()
{
    do
    :: at < there ->
        if
        :: taken[at] -> at++
        :: else ->
            atomic {
                if
                :: !taken[at] ->
                    taken[at] = 1;
                    slot = at;
                    at = SLOTS
                :: else -> at++
                fi
            }
        fi
    :: else -> break
    od;
    at = 0
}

/* Ends without a slot when the pool can grow no more. */
inline slot_claim()
{
    do
    :: slot_take_free();
        if
        :: slot != NONE -> break
        :: else
        fi;
        slot_reap();
        if
        :: reaped -> reaped = 0
        :: else ->
            if
            :: atomic { /* the pool grows; or another thread has enlarged it: looks again */
                    there < SLOTS ->
                    there++
                }
            :: else -> break
            fi
        fi
    od;
    if
    :: slot != NONE ->
        atomic { /* slot_own() */
            owner[slot] != OWNED ->
            assert(owner[slot] == FREE);
            owner[slot] = OWNED;
            assert(!owned[slot] && !credit[slot]);
            owned[slot] = 1
        }
        slot_groups_update();
        claimed[slot] = 1
    :: else
    fi
}

active [THREADS] proctype thread()
{
    byte slot = NONE;
    byte at, i, last, seen;
    bit locked, dead, reaped, changed;
    do
    :: atomic {
            calls++
        }
        if
        :: slot == NONE -> slot_claim()
        :: slot != NONE && !credit[slot] ->
            charged++;
            credit[slot] = 1
        :: slot != NONE -> /* ends */
            at = slot;
            slot = NONE;
            slot_release(at);
            at = 0
        :: true -> /* ledger_drain_others() */
            slot_reap();
            reaped = 0
        fi;
        d_step {
            calls--;
            check_rest()
        }
    :: atomic { /* dies */
            slot != NONE ->
            assert(owned[slot]);
            owner[slot] = DEAD;
            owned[slot] = 0;
            slot = NONE
        }
    od
}
