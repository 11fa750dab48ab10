/* The hot path's bound of zmalloc.c as a state machine, for spin; run.sh checks it. ledger.pml says how the two are
 * written.
 *
 * Each slot has a copy of the bound, fast_below, which depends on two settings: whether no size may take the hot path, and
 * whether caches hold anything, from which cache_set_fast_below() works out what the bound is else. Some threads set one of
 * them and then store what they find to be wanted into every slot that is taken; others take a slot, and do so for it
 * alone; nobody holds a lock. Whenever none of these is under way, every slot in use has the bound that is wanted.
 *
 * `taken` and the settings are loaded and stored with memory_order_seq_cst in the C code, as they are here: of one thread
 * that sets and then walks, and one that takes a slot and then looks, one must see the other. */

#define SLOTS 2
#ifndef SETTERS
#define SETTERS 1
#endif
#ifndef OWNERS
#define OWNERS 1
#endif
#ifndef CACHES
#define CACHES 1 /* the cache is switched off and on */
#endif

bit slow_only;
bit cache_max = 1;
bit ledger_fast_below = 1;
bit fast_below[SLOTS];
byte taken; /* one bit for each slot */

/* the checks': */
byte under_way;
bit in_use[SLOTS];

inline check_bounds()
{
    under_way--;
    i = 0;
    do
    :: i < SLOTS ->
        assert(under_way != 0 || !in_use[i] || fast_below[i] == (slow_only -> 0 : cache_max));
        i++
    :: else -> break
    od;
    i = 0
}

/* Two loads, the second only if some size may take the hot path. */
inline fast_below_wanted(result)
{
    result = !slow_only;
    if
    :: result -> result = ledger_fast_below
    :: else
    fi
}

/* Of the slots in `mask`: all, or the new owner's own. */
inline fast_below_update(mask)
{
    do
    :: fast_below_wanted(wanted);
        walk = taken & (mask);
        do
        :: atomic {
                walk != 0 ->
                fast_below[(walk & 1 -> 0 : 1)] = wanted;
                walk = walk & (walk - 1)
            }
        :: walk == 0 -> break
        od;
        fast_below_wanted(found);
        if
        :: found == wanted -> break
        :: else -> found = 0
        fi
    od;
    wanted = 0;
    found = 0
}

/* The last to store is the last to check here too. */
inline cache_set_fast_below()
{
    do
    :: wanted = cache_max;
        ledger_fast_below = wanted;
        if
        :: cache_max == wanted -> break
        :: else
        fi
    od;
    wanted = 0
}

active [SETTERS] proctype setter()
{
    bit wanted, found;
    byte walk, i;
    do
    :: atomic {
            under_way++;
            slow_only = !slow_only
        }
        fast_below_update(3);
        d_step { check_bounds() }
#if CACHES
    :: atomic {
            under_way++;
            cache_max = !cache_max
        }
        cache_set_fast_below();
        fast_below_update(3);
        d_step { check_bounds() }
#endif
    od
}

active [OWNERS] proctype thread()
{
    bit wanted, found;
    byte walk, own, i;
    do
    :: atomic { /* takes a slot */
            under_way++;
            if
            :: !(taken & 1) -> own = 0
            :: !(taken & 2) -> own = 1
            fi;
            taken = taken | (1 << own)
        }
        fast_below_update(1 << own);
        d_step {
            in_use[own] = 1;
            check_bounds()
        }
        /* ... and gives it back. */
        in_use[own] = 0;
        fast_below[own] = 0;
        atomic {
            taken = taken & ~(1 << own);
            own = 0
        }
    od
}
