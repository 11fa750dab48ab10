/* The gate of zmalloc.c as a state machine, for spin; run.sh checks it. ledger.pml says how the two are written.
 *
 * Each slot has a copy of the gate, which depends on two settings. Some threads set one of them and then store what they
 * find to be wanted into every slot; others take a slot, that was there before or that they have just published, and do so
 * for it alone; nobody holds a lock. Whenever none of these is under way, every slot in use has the gate that is wanted.
 *
 * The slot list and the settings are loaded and stored with memory_order_seq_cst in the C code, as they are here: of one
 * thread that sets and then walks, and one that publishes and then looks, one must see the other. */

#define SLOTS 2
#ifndef SETTERS
#define SETTERS 1
#endif
#ifndef OWNERS
#define OWNERS 1
#endif

bit closed;
byte limit = 1;
byte gate[SLOTS];
bit taken[SLOTS];
byte published = 1; /* slots in the list; the others come to its head */

/* the checks': */
byte under_way;
bit in_use[SLOTS];

inline check_gates()
{
    under_way--;
    i = 0;
    do
    :: i < SLOTS ->
        assert(under_way != 0 || !in_use[i] || gate[i] == (closed -> 0 : limit));
        i++
    :: else -> break
    od;
    i = 0
}

/* Two loads, the second only if the gate is not closed. */
inline gate_wanted(result)
{
    result = closed;
    if
    :: result -> result = 0
    :: else -> result = limit
    fi
}

/* `first` to `last`: all slots, or the new owner's own. */
inline gate_update(first, last)
{
    do
    :: gate_wanted(wanted);
        i = first;
        do
        :: i <= last ->
            gate[i] = wanted;
            i++
        :: else -> break
        od;
        i = 0;
        gate_wanted(found);
        if
        :: found == wanted -> break
        :: else -> found = 0
        fi
    od;
    wanted = 0;
    found = 0
}

active [SETTERS] proctype setter()
{
    byte wanted, found, newest, i;
    do
    :: atomic {
            under_way++;
            if
            :: closed = !closed
            :: limit = 3 - limit
            fi
        }
        newest = published - 1;
        gate_update(0, newest);
        atomic {
            newest = 0;
            check_gates()
        }
    od
}

active [OWNERS] proctype owner()
{
    byte wanted, found, own, i;
    do
    :: atomic { /* takes a slot */
            under_way++;
            if
            :: !taken[0] -> own = 0
            :: published > 1 && !taken[1] -> own = 1
            fi;
            taken[own] = 1
        }
        gate_update(own, own);
        atomic {
            in_use[own] = 1;
            check_gates()
        }
        /* ... and retires. */
        in_use[own] = 0;
        gate[own] = 0;
        atomic {
            taken[own] = 0;
            own = 0
        }
    :: atomic { /* publishes one, which is its own */
            published < SLOTS ->
            under_way++;
            own = published;
            taken[own] = 1;
            published++
        }
        gate_update(own, own);
        atomic {
            in_use[own] = 1;
            check_gates()
        }
        in_use[own] = 0;
        gate[own] = 0;
        atomic {
            taken[own] = 0;
            own = 0
        }
    od
}
