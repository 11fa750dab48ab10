/* The ledger of zmalloc.c as a state machine, for spin; run.sh checks it.
 *
 * Threads allocate, free, resize, exit and begin anew, for ever and in any order; others read the use, switch exact mode
 * and set limits meanwhile. spin visits every state that some interleaving leads to. A batch is 2 bytes here and a limit
 * about 4, and a slot may keep a half of the room and not a sixteenth, so that such small numbers reach every case.
 *
 * A step (a statement, an atomic, a d_step) makes at most one access to what threads share, which is one atomic operation
 * of the C code. Merged with it is what the thread computes from its own variables, its own credit among them, which no
 * other thread writes; and what the checks need. Names are those of the C code.
 *
 * Memory is sequentially consistent here. What stands in for that in the C code:
 *   - Who changes the mode or the limit and who settles each store one variable and then load the other: the setting, then
 *     `pokes`, against ledger_settle(); the peak, then `charged`, in ledger_reset_peak() against ledger_take() and
 *     ledger_note_peak(); the slot list, then the settings, against the walk of ledger_poke_all(). Both sides need
 *     memory_order_seq_cst for all four accesses, or each can miss the other.
 *   - A reader loads each credit with acquire, so `charged` after them. Release, on the store of a credit that `charged`
 *     has just been raised for, shows that rise to whoever sees the credit. The fast path stores with relaxed order: a
 *     reader may see a block freed into a credit and not the rise that paid for it. Such a credit is below a batch.
 *   - A slot passes from owner to owner, with its plain member `keep`, by release and acquire on `taken`.
 *   - A call comes after a setting when the program has ordered them; else it may see the setting a little later.
 * An exchange that fails for no reason (a weak one) begins its loop again, which changes nothing: left out.
 *
 * Not modelled: the gate (gate.pml), watermarks, fork, the time of the peak, the count of refusals.
 *
 * `used` is what a reader computes. `use` is what blocks are charged with, and moves in the step in which a call takes
 * effect. `live` holds a block from the return of the call that makes it to the start of the call that ends it. */

/* ==== configuration ==== */

#ifndef THREADS
#define THREADS 2
#endif
#ifndef SLOTS
#define SLOTS THREADS /* with fewer, some threads have none */
#endif
#ifndef BATCH
#define BATCH 2
#endif
#ifndef SIZES
#define SIZES 2 /* allocations and frees are of 1 to SIZES bytes */
#endif
#ifndef LIMIT
#define LIMIT 4 /* at the start */
#endif
#ifndef EXACT
#define EXACT 0 /* at the start */
#endif
#ifndef RESIZES
#define RESIZES 0 /* resizes reserve 1 to RESIZES bytes; 0: there are none */
#endif
#ifndef EXITS
#define EXITS 0 /* threads exit; without a slot they go on for a while, as destructors do, and begin anew */
#endif
#ifndef READER
#define READER 0
#endif
#ifndef SWITCHES
#define SWITCHES 0 /* of exact mode */
#endif
#ifndef SETS_LIMIT
#define SETS_LIMIT 0 /* to LIMIT and OTHER_LIMIT, in turn or again */
#endif
#ifndef OTHER_LIMIT
#define OTHER_LIMIT UNLIMITED
#endif
#ifndef POKES
#define POKES (!SWITCHES && !SETS_LIMIT) /* pokes are checked for themselves, not for what they bring about */
#endif
#ifndef PEAK
#define PEAK 0 /* the peak is noted and checked */
#endif
#ifndef RESETS
#define RESETS 0 /* of the peak */
#endif

#ifndef MOST
#define MOST (LIMIT + SIZES) /* a thread begins no allocation when the use is that high, even when it may */
#endif
#ifndef CALLS
#define CALLS 0 /* after that many threads begin no other; 0: they go on for ever */
#endif

#define KEEP (BATCH / 2)
#define SHARE 1
#define UNLIMITED 100
#define SETTLING 1

#define min(a, b) ((a) < (b) -> (a) : (b))
#define max(a, b) ((a) > (b) -> (a) : (b))

#if THREADS == 1
#define each_thread(array, value) array[0] = value
#define any_thread(array) array[0]
#elif THREADS == 2
#define each_thread(array, value) array[0] = value; array[1] = value
#define any_thread(array) (array[0] || array[1])
#else
#define each_thread(array, value) array[0] = value; array[1] = value; array[2] = value
#define any_thread(array) (array[0] || array[1] || array[2])
#endif

#if SLOTS == 1
#define credits credit[0]
#elif SLOTS == 2
#define credits (credit[0] + credit[1])
#else
#define credits (credit[0] + credit[1] + credit[2])
#endif

/* ==== what threads share ==== */

byte charged;
/* Loading what nobody changes is no step. */
#if SETS_LIMIT
byte limit = LIMIT;
#else
#define limit LIMIT
#endif
#if SWITCHES
bit exact = EXACT;
#else
#define exact EXACT
#endif
byte peak;

/* slot_none is the last one: not in the pool, so not summed. */
#define NONE SLOTS
byte credit[SLOTS + 1];
byte ceiling[SLOTS + 1];
bit taken[SLOTS + 1];

/* ==== what the checks remember ==== */

byte use, live;
byte calls; /* in flight */
#if CALLS
byte begun;
#endif
bit owned[SLOTS + 1];
#if POKES
bit poked[SLOTS + 1]; /* a poke has come, and the owner has not begun to settle since */
#endif
#if PEAK
byte resets; /* in flight */
#endif
#if SWITCHES
bit exact_holds;         /* the switch to exact mode has returned */
bit owes_exact[THREADS]; /* is in a call that began after that */
#endif
#if SETS_LIMIT
bit limit_holds = 1;     /* the change of the limit has returned */
bit old_call[THREADS];   /* is in a call that began before that */
bit owes_limit[THREADS]; /* is in a call that began after that, and after the end of the last old call */
bit in_call[THREADS];
#endif

inline call_begins()
{
    calls++;
#if CALLS
    begun++;
#endif
#if POKES
    owes_settling = poked[slot];
#endif
#if SWITCHES
    owes_exact[_pid] = exact_holds;
#endif
#if SETS_LIMIT
    in_call[_pid] = 1;
    old_call[_pid] = !limit_holds;
    owes_limit[_pid] = limit_holds && !any_thread(old_call);
#endif
}

inline call_ends()
{
    calls--;
    assert(calls != 0 || charged - credits == live);
    assert(calls != 0 || use == live);
    assert(credit[slot] <= BATCH && credit[NONE] == 0);
#if POKES
    assert(!owes_settling || credit[slot] == 0);
    owes_settling = 0;
#endif
#if SWITCHES
    assert(!owes_exact[_pid] || credit[slot] == 0);
    owes_exact[_pid] = 0;
#endif
#if SETS_LIMIT
    in_call[_pid] = 0;
    old_call[_pid] = 0;
    owes_limit[_pid] = 0;
#endif
}

/* Belongs to the step in which a call takes effect. */
inline use_moves(by)
{
    use = use + by;
#if SETS_LIMIT
    assert(by <= 0 || !owes_limit[_pid] || use <= limit);
#endif
}

/* `charged`, a credit or `live` has moved. Without this even a reader of all at one moment could see a negative sum. */
inline check_covered()
{
    assert(charged >= live + credits);
#if !SETS_LIMIT
    assert(charged <= limit);
#endif
}

/* The charge of a block is in `live` now, so in the peak, which only a reset lowers. */
inline check_peak_is_enough()
{
#if PEAK
    assert(resets != 0 || peak >= live)
#else
    skip
#endif
}

/* `charged` is what the peak will be, because the use has risen or is about to. */
inline check_peak_is_true(rise)
{
#if PEAK
    assert(charged <= use + rise + THREADS * (EXACT -> 0 : BATCH) + (THREADS - 1) * RESIZES)
#else
    skip
#endif
}

/* `charged` is what refuses the call. All that the program's own bookkeeping may deny it is what other threads hold: a batch
 * each, and what they have reserved. */
inline check_refusal()
{
#if !SETS_LIMIT
    assert(charged + need <= limit || use + mine + need + (THREADS - 1) * (BATCH + RESIZES) > limit)
#else
    skip
#endif
}

/* ==== ledger ==== */

#define room_below(limit_, charged_) ((limit_) > (charged_) -> (limit_) - (charged_) : 0)

/* Loads the mode. */
#define ledger_keep(room_) (exact -> 0 : min(keep, (room_) / SHARE))

/* The next slot of a walk that spares one. */
#define after(slot_, spared_) ((slot_) + 1 + ((slot_) + 1 == (spared_)))

/* Out: room. */
inline ledger_room()
{
    room = charged;
    room = room_below(limit, room)
}

/* `spared` may be NONE. */
inline ledger_poke(spared)
{
    i = (spared == 0);
    do
    :: atomic {
            i < SLOTS ->
            ceiling[i] = 0;
#if POKES
            poked[i] = 1;
#endif
            i = after(i, spared)
        }
    :: i >= SLOTS -> break
    od;
    i = 0
}

/* In: need. Out: recalled or refused. */
inline ledger_recall()
{
    i = (slot == 0);
    do
    :: atomic {
            i < SLOTS ->
            held = held + credit[i];
            i = after(i, slot)
        }
    :: i >= SLOTS -> break
    od;
    i = 0;
    if
    :: held == 0 -> refused = 1
    :: else ->
        room = charged;
        atomic {
            refused = need > held + room_below(limit, room);
            held = 0;
            room = 0
        }
        if
        :: refused
        :: else ->
            ledger_poke(slot);
            recalled = 1
        fi
    fi
}

inline ledger_note_peak(value)
{
#if PEAK
    room = peak;
    do
    :: value <= room -> break
    :: atomic {
            value > room ->
            if
            :: peak == room ->
                peak = value;
                room = value
            :: else -> room = peak
            fi
        }
    od;
    room = 0
#else
    skip
#endif
}

inline load_charged()
{
    atomic {
        seen = charged;
        check_refusal()
    }
}

/* In: need, force. Out: got, 0 for a refusal; seen, the new value of `charged`. The use moves by `effect`. */
inline ledger_take(effect)
{
    load_charged();
    do
    :: atomic {
            got == 0 && !refused ->
            room = (force -> UNLIMITED : room_below(limit, seen))
        }
        if
        :: atomic {
                need <= room ->
                want = need + ledger_keep(room - need);
                room = 0
            }
            atomic {
                if
                :: charged == seen ->
                    charged = charged + want;
                    use_moves(effect);
                    check_covered();
                    if
                    :: effect > 0 -> check_peak_is_true(0)
                    :: else
                    fi;
                    seen = (PEAK || SETS_LIMIT -> charged : 0);
                    got = want
                :: else ->
                    seen = charged;
                    check_refusal()
                fi;
                want = 0
            }
        :: atomic {
                need > room && recalled ->
                refused = 1;
                seen = 0;
                room = 0
            }
        :: need > room && !recalled ->
            atomic {
                seen = 0;
                room = 0
            }
            ledger_recall();
            if
            :: refused
            :: else -> load_charged()
            fi
        fi
    :: atomic {
            got != 0 || refused ->
            refused = 0;
            recalled = 0;
            need = 0;
            break
        }
    od;
#if SETS_LIMIT
    /* The limit may have been set below `charged` meanwhile, and the other threads have settled since. */
    if
    :: got != 0 ->
        if
        :: seen > limit -> ledger_poke(NONE)
        :: else
        fi
    :: else
    fi
#endif
}

/* Out: kept. */
inline ledger_kept(rest)
{
    ledger_room();
    atomic {
        kept = min(rest, ledger_keep(room + rest));
        room = 0
    }
}

/* A rise of the use takes effect with the credit, a fall with `charged`. One that follows is in `rise`. */
inline ledger_give(left, by, effect, rise)
{
    atomic {
        credit[slot] = left;
        if
        :: effect > 0 -> use_moves(effect)
        :: else
        fi;
        check_covered()
    }
    atomic {
        charged = charged - (by);
        if
        :: effect < 0 -> use_moves(effect)
        :: rise > 0 ->
            check_peak_is_true(rise);
            seen = charged
        :: else
        fi;
        check_covered()
    }
}

inline ledger_set_ceiling()
{
    ledger_room();
    atomic {
        kept = ledger_keep(room);
        room = 0
    }
    atomic {
        if
        :: ceiling[slot] == SETTLING -> ceiling[slot] = 2 * kept
        :: else
        fi;
        kept = 0
    }
}

/* In and out: mine. */
inline ledger_good_credit()
{
#if SETS_LIMIT
    seen = charged;
    atomic {
        over = (seen > limit);
        seen = 0
    }
    if
    :: over ->
        over = 0;
        ledger_give(0, mine, 0, 0);
        mine = 0
    :: else
    fi
#else
    skip
#endif
}

/* In: mine, n, force. Out: failed. */
inline ledger_settle()
{
    atomic {
        asked = (ceiling[slot] == 0);
#if POKES
        poked[slot] = 0;
        owes_settling = 0;
#endif
        ceiling[slot] = SETTLING
    }
    if
    :: n > 0 && !force -> ledger_good_credit()
    :: else
    fi;
    if
    :: n > mine ->
        need = n - mine;
        ledger_take(n);
        if
        :: got == 0 ->
            ledger_give(0, mine, 0, 0);
            failed = 1
        :: else ->
            ledger_note_peak(seen);
            atomic {
                credit[slot] = mine + got - n;
                check_covered();
                got = 0;
                seen = 0
            }
        fi
    :: else ->
        if
        :: asked
        :: else -> ledger_kept(mine - n)
        fi;
        ledger_give(kept, mine - n - kept, n, 0);
        kept = 0
    fi;
    if
    :: failed
    :: else -> ledger_set_ceiling()
    fi;
    asked = 0
}

/* In: n, force. Out: failed. A thread that ends goes to ledger_settle() in any case. */
inline ledger_add()
{
    atomic {
        mine = credit[slot];
        cold = ends || mine - n < 0 || mine - n >= ceiling[slot]
    }
    if
    :: cold ->
        cold = 0;
        ledger_settle()
    :: else ->
        atomic {
            credit[slot] = mine - n;
            use_moves(n);
            check_covered()
        }
    fi;
    mine = 0
}

/* In: bound, not 0. Out: failed. */
inline ledger_reserve()
{
    mine = credit[slot];
    ledger_good_credit();
    if
    :: bound <= mine
    :: bound > mine && slot == NONE -> failed = 1
    :: bound > mine && slot != NONE ->
        need = bound - mine;
        ledger_take(0);
        if
        :: got == 0 -> failed = 1
        :: else ->
            atomic {
                credit[slot] = mine + got;
                check_covered();
                got = 0;
                seen = 0
            }
        fi
    fi;
    mine = 0
}

/* In: n. Its ledger_add() is left to the caller. */
inline ledger_spend_reserved()
{
    mine = credit[slot];
    if
    :: n > 0 && n <= mine ->
        ledger_kept(mine - n);
        ledger_give(n + kept, mine - n - kept, 0, n);
        ledger_note_peak(seen)
    :: else -> ledger_give(0, mine, 0, 0)
    fi;
    atomic {
        kept = 0;
        mine = 0;
        seen = 0
    }
}

inline ledger_reset_peak()
{
#if PEAK
    mine = credit[slot];
    ledger_give(0, mine, 0, 0);
    mine = 0;
    do
    :: seen = charged;
        peak = seen;
        if
        :: charged > seen
        :: else -> break
        fi
    od;
    seen = 0
#else
    skip
#endif
}

/* ==== threads ==== */

inline slot_claim()
{
    do
    :: i < SLOTS ->
        if
        :: taken[i] -> i++
        :: else ->
            atomic {
                if
                :: !taken[i] ->
                    taken[i] = 1;
                    assert(!owned[i]);
                    owned[i] = 1;
                    slot = i;
                    keep = KEEP;
                    i = SLOTS
                :: else -> i++
                fi
            }
        fi
    :: else -> break
    od;
    i = 0
}

inline slot_release()
{
    atomic {
        assert(credit[slot] == 0);
        owned[slot] = 0;
        taken[slot] = 0;
        slot = NONE;
        ends = 0
    }
}

inline call_returns()
{
    atomic {
        if
        :: n > 0 && !failed ->
            live = live + n;
            check_covered();
            check_peak_is_enough()
        :: else
        fi;
        n = 0;
        bound = 0;
        force = 0;
        failed = 0;
        call_ends()
    }
}

active [THREADS] proctype thread()
{
    /* its slot, and that slot's `keep` */
    byte slot = NONE, keep;
    /* what it calls for: a charge, negative to give back; what a resize must reserve */
    short n;
    byte bound;
    bit force, resizes, ends, failed;
    /* the functions' own, 0 when not in use */
    byte mine, seen, room, need, want, got, kept, held, i;
    bit cold, asked, over, recalled, refused;
    /* the checks' */
    bit owes_settling;

#if !EXITS
    slot_claim();
#endif
    do
    :: atomic {
#if CALLS
            begun < CALLS;
#endif
            if
            :: use < MOST -> /* allocate */
                select (n : 1 .. SIZES)
            :: live > 0 -> /* free */
                select (n : 1 .. min(SIZES, live));
                live = live - n;
                n = -n;
                force = 1
#if RESIZES
            :: live > 0 -> /* resize */
                select (bound : 0 .. RESIZES);
                resizes = 1
#endif
#if EXITS
            :: slot != NONE -> /* end */
                keep = 0;
                ends = 1
#endif
            fi;
            call_begins()
        }
#if SETS_LIMIT
        if
        :: true
        :: n > 0 -> force = (limit == UNLIMITED) /* a resize that finds no limit does not pay first */
        fi;
#endif
#if RESIZES
        if
        :: resizes ->
            resizes = 0;
            if
            :: bound != 0 -> ledger_reserve()
            :: else
            fi;
            atomic { /* in place, or by copy when that could not be reserved */
                if
                :: select (n : 0 .. bound) /* 0: it has failed, or the size has not changed */
                :: live > 0 ->
                    live--;
                    n = -1
                fi;
                force = !failed
            }
            if
            :: failed -> failed = 0
            :: else -> ledger_spend_reserved()
            fi
        :: else
        fi;
#endif
        ledger_add();
#if EXITS
        if
        :: ends -> slot_release()
        :: else
        fi;
#endif
        call_returns()
#if EXITS
    :: slot == NONE -> slot_claim()
#endif
#if RESETS
    :: atomic {
            resets++;
            call_begins()
        }
        ledger_reset_peak();
        atomic {
            resets--;
            check_peak_is_enough();
            call_ends()
        }
#endif
    od
}

/* ==== others ==== */

#if READER
active proctype reader()
{
    short used;
    byte i;
    do
    :: i < SLOTS ->
        d_step {
            used = used - credit[i];
            i++
        }
    :: else ->
        d_step {
            used = used + charged;
            used = max(used, 0);
            assert(0 <= used && used <= limit);
            assert(used <= use + SLOTS * (BATCH + RESIZES));
            assert(used + SLOTS * (BATCH + RESIZES) >= live);
            used = 0;
            i = 0
        }
    od
}
#endif

#if SWITCHES
active proctype switcher()
{
    byte i;
    do
    :: d_step {
            exact = !exact;
            exact_holds = 0;
            each_thread(owes_exact, 0)
        }
        ledger_poke(NONE);
        exact_holds = exact
    od
}
#endif

#if SETS_LIMIT
active proctype limiter()
{
    byte wanted, i;
    do
    :: if
        :: wanted = LIMIT
        :: wanted = OTHER_LIMIT
        fi;
        d_step {
            limit = wanted;
            limit_holds = 0;
            each_thread(owes_limit, 0);
            i = 0;
            do
            :: i < THREADS ->
                old_call[i] = in_call[i];
                i++
            :: else -> break
            od;
            i = 0;
            wanted = 0
        }
        ledger_poke(NONE);
        limit_holds = 1
    od
}
#endif
