/* The account of zmalloc.c as a state machine, for spin; run.sh checks it.
 *
 * Threads allocate, free, resize, exit, die and begin anew, for ever and in any order; others read the use, switch exact
 * mode, set limits and ask for caches to be emptied meanwhile. spin visits every state that some interleaving leads to. A
 * batch is 2 bytes here and a limit about 4, and a slot may keep a half of the room and not a sixteenth, so that such
 * small numbers reach every case.
 *
 * A step (a statement, an atomic, a d_step) makes at most one access to what threads share, which is one atomic operation
 * of the C code. Merged with it is what the thread computes from its own variables, its own credit among them, which no
 * other thread writes; and what the checks need. Names are those of the C code.
 *
 * Memory is sequentially consistent here. What stands in for that in the C code:
 *   - Who changes the mode or the limit and who settles each store one variable and then load the other: the setting, then
 *     asks for a settlement, against ledger_settle(); the peak, then `charged`, in ledger_reset_peak() against
 *     ledger_take() and ledger_note_peak(); the setting, then `taken`, in ledger_request_drain() against the owner who has
 *     set its bit there; the cache's epoch, then the ceiling, against ledger_settle() and cache_adopt(). Both sides need
 *     memory_order_seq_cst for all four accesses, or each can miss the other.
 *   - A reader loads each credit with acquire, so `charged` after them. Release, on the store of a credit that `charged`
 *     has just been raised for, shows that rise to whoever sees the credit. The hot path stores with relaxed order: a
 *     reader may see a block freed into a credit and not the rise that paid for it. Such a credit is below a batch.
 *   - A slot passes from owner to owner, with its plain members, by release and acquire on `taken`, and from one that is
 *     dead to its reaper by the mutex.
 *   - A call comes after a setting when the program has ordered them; else it may see the setting a little later.
 * An exchange that fails for no reason (a weak one) begins its loop again, which changes nothing: left out. ledger_lower()
 * loads and exchanges until it succeeds; here it is one step.
 *
 * Not modelled: the hot path's bound (bound.pml), groups of slots and the growth of the pool (slots.pml), watermarks,
 * fork, the time of the peak, the count of refusals, what is in a cache.
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
#ifndef DEATHS
#define DEATHS 0 /* threads end without giving back their slots; needs EXITS */
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
#ifndef EMPTIES
#define EMPTIES 0 /* caches are asked to be emptied */
#endif
#ifndef DRAINS
#define DRAINS (!SWITCHES && !SETS_LIMIT && !EMPTIES) /* requests are checked for themselves, not for what they bring about */
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

#define STOCK_MAX (BATCH / 2)
#define SHARE 1
#define UNLIMITED 100
#define SETTLING 1
#define RISE 0
#define RISE_FORCED 1
#define RISE_RESERVED 2
#define FREE 0
#define OWNED 1
#define DEAD 2

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

/* slot_unbound is the last one: not in the pool, so not summed. */
#define NONE SLOTS
byte credit[SLOTS + 1];
byte ceiling[SLOTS + 1];
/* One bit for each slot. */
#define ALL ((1 << SLOTS) - 1)
#if EXITS
byte taken;
#else
#define taken ALL
#endif
#if DEATHS
byte owner[SLOTS + 1]; /* the mutex */
#endif
#if EMPTIES
bit stale[SLOTS + 1]; /* the slot's cache_epoch is not the cache's */
#endif

/* ==== what the checks remember ==== */

byte use, live;
byte calls; /* in flight */
#if CALLS
byte begun;
#endif
bit owned[SLOTS + 1];
#if DRAINS
bit requested[SLOTS + 1]; /* a request has come, and the owner has not begun to settle since */
#endif
#if PEAK
byte resets; /* in flight */
#endif
#if SWITCHES
bit exact_holds;         /* the switch to exact mode has returned */
bit owes_exact[THREADS]; /* is in a call that began after that */
#endif
#if EMPTIES
bit epoch_holds;         /* the request to empty has returned */
bit owes_empty[THREADS]; /* is in a call that began after that */
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
#if DRAINS
    owes_settling = requested[slot];
#endif
#if SWITCHES
    owes_exact[_pid] = exact_holds;
#endif
#if EMPTIES
    owes_empty[_pid] = epoch_holds;
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
#if DRAINS
    assert(!owes_settling || credit[slot] == 0);
    owes_settling = 0;
#endif
#if SWITCHES
    assert(!owes_exact[_pid] || credit[slot] == 0);
    owes_exact[_pid] = 0;
#endif
#if EMPTIES
    assert(!owes_empty[_pid] || slot == NONE || !stale[slot]);
    owes_empty[_pid] = 0;
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
    assert(charged <= use + rise + SLOTS * (EXACT -> 0 : BATCH) + (THREADS - 1) * RESIZES)
#else
    skip
#endif
}

/* `charged` is what refuses the call. All that the program's own bookkeeping may deny it is what other slots hold, a batch
 * each, and what other threads have reserved. */
#define others_hold ((SLOTS - (slot != NONE)) * BATCH + (THREADS - 1) * RESIZES)

inline check_refusal()
{
#if !SETS_LIMIT
    assert(charged + need <= limit || use + mine + need + others_hold > limit)
#else
    skip
#endif
}

/* ==== ledger ==== */

#define room_below(limit_, charged_) ((limit_) > (charged_) -> (limit_) - (charged_) : 0)

/* Loads the mode. `stock_max` is 0 in a thread without a slot. */
#define ledger_allowance(room_) (exact -> 0 : min(stock_max, (room_) / SHARE))

/* Of a walk over a copy of `taken`. */
#define first_of(walk_) ((walk_) & 1 -> 0 : ((walk_) & 2 -> 1 : 2))
#define rest_of(walk_) ((walk_) & ((walk_) - 1))

/* Out: room. */
inline ledger_room()
{
    room = charged;
    room = room_below(limit, room)
}

/* Out: walk. `spared` may be NONE. */
inline slot_walk_all(spared)
{
    walk = taken & ~(1 << (spared))
}

/* A rise of the use takes effect with the credit, a fall with `charged`. The second step is ledger_lower(), whose clamp is
 * for what was never charged. */
inline ledger_give(slot_, left, by, effect)
{
    atomic {
        credit[slot_] = left;
        if
        :: effect > 0 -> use_moves(effect)
        :: else
        fi;
        check_covered()
    }
    atomic {
        assert(charged >= by);
        charged = charged - (by);
        if
        :: effect < 0 -> use_moves(effect)
        :: else
        fi;
        check_covered()
    }
}

/* The cache's only part here: whether a request that all bins be emptied has come to the owner. */
inline cache_adopt()
{
#if EMPTIES
    stale[slot] = (slot == NONE -> stale[slot] : 0)
#else
    skip
#endif
}

/* Gives back what the slot holds, and the slot. */
inline slot_release(slot_)
{
    held = credit[slot_];
    ledger_give(slot_, 0, held, 0);
    held = 0;
    d_step {
        ceiling[slot_] = 0;
#if DRAINS
        requested[slot_] = 0;
#endif
    }
    d_step {
        assert(credit[slot_] == 0 && owned[slot_]);
        owned[slot_] = 0;
        taken = taken & ~(1 << slot_)
    }
#if DEATHS
    owner[slot_] = FREE
#endif
}

/* Out: reaped. A mutex that is free is that of a thread which is just claiming: slots.pml has what comes of it. */
inline slot_reap()
{
#if DEATHS
    slot_walk_all(NONE);
    do
    :: atomic {
            walk != 0 ->
            dead = first_of(walk);
            walk = rest_of(walk);
            if
            :: owner[dead] == DEAD ->
                owner[dead] = OWNED;
                assert(!owned[dead]);
                owned[dead] = 1
            :: else -> dead = NONE
            fi
        }
        if
        :: dead != NONE ->
            slot_release(dead);
            dead = NONE;
            reaped = 1
        :: else
        fi
    :: walk == 0 -> break
    od
#else
    skip
#endif
}

/* `spared` may be NONE. */
inline ledger_request_drain(spared)
{
    slot_walk_all(spared);
    do
    :: d_step {
            walk != 0 ->
            ceiling[first_of(walk)] = 0;
#if DRAINS
            requested[first_of(walk)] = 1;
#endif
            walk = rest_of(walk)
        }
    :: walk == 0 -> break
    od
}

/* In: need. Out: drained or refused. */
inline ledger_drain_others()
{
    slot_reap();
    slot_walk_all(slot);
    do
    :: d_step {
            walk != 0 ->
            held = held + credit[first_of(walk)];
            walk = rest_of(walk)
        }
    :: walk == 0 -> break
    od;
    if
    :: held == 0 ->
        d_step {
            drained = reaped;
            refused = !reaped
        }
    :: else ->
        room = charged;
        atomic {
            refused = !reaped && need > held + room_below(limit, room);
            drained = reaped && need > held + room_below(limit, room);
            held = 0;
            room = 0
        }
        if
        :: refused || drained
        :: else ->
            ledger_request_drain(slot);
            drained = 1
        fi
    fi;
    reaped = 0
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

/* In: need, rise. Out: got, 0 for a refusal; seen, the new value of `charged`. The use moves by `effect`. */
inline ledger_take(effect)
{
    load_charged();
    do
    :: atomic {
            got == 0 && !refused ->
            room = (rise == RISE_FORCED -> UNLIMITED : room_below(limit, seen))
        }
        if
        :: atomic {
                need <= room ->
                want = ledger_allowance(room - need);
                if
                :: want == BATCH / 2 && room - need >= BATCH -> want = BATCH - 1 /* the owner goes on allocating */
                :: true
                fi;
                want = want + need;
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
                need > room && drained ->
                refused = 1;
                seen = 0;
                room = 0
            }
        :: need > room && !drained ->
            atomic {
                seen = 0;
                room = 0
            }
            ledger_drain_others();
            if
            :: refused
            :: else -> load_charged()
            fi
        fi
    :: atomic {
            got != 0 || refused ->
            refused = 0;
            drained = 0;
            need = 0;
            break
        }
    od;
#if SETS_LIMIT
    /* The limit may have been set below `charged` meanwhile, and the other threads have settled since. */
    if
    :: got != 0 ->
        if
        :: seen > limit -> ledger_request_drain(NONE)
        :: else
        fi
    :: else
    fi
#endif
}

/* Out: kept. */
inline ledger_retain(rest)
{
    ledger_room();
    atomic {
        kept = min(rest, ledger_allowance(room + rest));
        if
        :: kept = 0 /* the owner goes on freeing */
        :: true
        fi;
        room = 0
    }
}

inline ledger_set_ceiling()
{
    ledger_room();
    atomic {
        kept = ledger_allowance(room);
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
inline ledger_spendable()
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
        ledger_give(slot, 0, mine, 0);
        mine = 0
    :: else
    fi
#else
    skip
#endif
}

/* In: mine, up or down, rise. Out: failed. */
inline ledger_settle()
{
    atomic {
        asked = (ceiling[slot] == 0);
#if DRAINS
        requested[slot] = 0;
        owes_settling = 0;
#endif
        ceiling[slot] = SETTLING
    }
    if
    :: asked -> cache_adopt()
    :: else
    fi;
    if
    :: up > 0 && rise != RISE_FORCED -> ledger_spendable()
    :: else
    fi;
    if
    :: up > mine ->
        need = up - mine;
        ledger_take((rise == RISE_RESERVED -> 0 : up));
        if
        :: got == 0 ->
            ledger_give(slot, 0, mine, 0);
            failed = 1
        :: else ->
            if
            :: rise != RISE_RESERVED -> ledger_note_peak(seen)
            :: else
            fi;
            atomic {
                credit[slot] = mine + got - up;
                check_covered();
                got = 0;
                seen = 0
            }
        fi
    :: else ->
        if
        :: asked
        :: else -> ledger_retain(mine - up + down)
        fi;
        ledger_give(slot, kept, mine - up + down - kept, (rise == RISE_RESERVED -> 0 : up - down));
        kept = 0
    fi;
    if
    :: failed
    :: else -> ledger_set_ceiling()
    fi;
    asked = 0
}

/* Out: mine, must_settle. */
inline ledger_must_settle()
{
    d_step {
        mine = credit[slot];
        must_settle = mine + down < up || mine + down - up >= ceiling[slot]
    }
}

/* ledger_charge(), ledger_force_charge(), ledger_reserve(), ledger_uncharge(): ledger_try() or else ledger_settle(). In: up
 * or down, rise. Out: failed. */
inline ledger_change()
{
    ledger_must_settle();
#if EMPTIES
    if
    :: true
    :: true -> must_settle = 1 /* the call is slow for another reason */
    fi;
    if
    :: must_settle -> /* ... and tries again then */
        cache_adopt();
        ledger_must_settle()
    :: else
    fi;
#endif
    if
    :: must_settle ->
        must_settle = 0;
        ledger_settle()
    :: else ->
        atomic {
            credit[slot] = mine - up + down;
            use_moves((rise == RISE_RESERVED -> 0 : up - down));
            check_covered()
        }
    fi;
    mine = 0
}

/* For a resize that has reserved `up` bytes. It has failed, or used some. */
inline resize_ends()
{
    atomic {
        if
        :: down = up; /* it has failed */
            up = 0
        :: select (down : 0 .. up);
            up = up - down;
            resized = 1
        fi;
        use_moves(up)
    }
    if
    :: down > 0 -> /* ledger_return_reserved() */
        mine = credit[slot];
        ledger_give(slot, 0, mine + down, 0);
        mine = 0;
        down = 0
    :: else
    fi;
    if
    :: resized -> /* ledger_end_reserved() */
        resized = 0;
        atomic {
            seen = charged;
            check_peak_is_true(0)
        }
        ledger_note_peak(seen);
        seen = 0
    :: else
    fi
}

inline ledger_reset_peak()
{
#if PEAK
    mine = credit[slot];
    ledger_give(slot, 0, mine, 0);
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

inline slot_take_free()
{
    do
    :: i < SLOTS ->
        if
        :: (taken >> i) & 1 -> i++
        :: else ->
            atomic {
                if
                :: ((taken >> i) & 1) == 0 ->
                    taken = taken | (1 << i);
                    own = i;
                    i = SLOTS
                :: else -> i++
                fi
            }
        fi
    :: else -> break
    od;
    i = 0
}

/* The pool does not grow here. */
inline slot_claim()
{
    slot_take_free();
#if DEATHS
    if
    :: own == NONE ->
        slot_reap();
        if
        :: reaped ->
            reaped = 0;
            slot_take_free()
        :: else
        fi
    :: else
    fi;
    if
    :: own != NONE -> /* slot_own() */
        assert(owner[own] != DEAD);
        atomic {
            owner[own] == FREE ->
            owner[own] = OWNED
        }
    :: else
    fi;
#endif
    atomic {
        if
        :: own != NONE ->
            assert(!owned[own] && credit[own] == 0);
            owned[own] = 1;
            slot = own;
            own = NONE;
            stock_max = STOCK_MAX
        :: else
        fi
    }
    cache_adopt()
}

inline call_returns()
{
    atomic {
        if
        :: up > 0 && !failed ->
            live = live + up;
            check_covered();
            check_peak_is_enough()
        :: else
        fi;
        up = 0;
        down = 0;
        rise = RISE;
        failed = 0;
        call_ends()
    }
}

active [THREADS] proctype thread()
{
    /* its slot, and that slot's `stock_max` */
    byte slot = NONE, stock_max;
    /* what it calls for */
    byte up, down, rise;
    bit ends, failed, resized;
    /* the functions' own, 0 when not in use */
    byte mine, seen, room, need, want, got, kept, held, walk, i;
    byte dead = NONE, own = NONE;
    bit must_settle, asked, over, drained, refused, reaped;
    /* the checks' */
    bit owes_settling;

#if !EXITS
    d_step {
        slot = _pid;
        stock_max = STOCK_MAX
    }
#endif
    do
    :: atomic {
#if CALLS
            begun < CALLS;
#endif
            if
            :: use < MOST -> /* allocate */
                select (up : 1 .. SIZES)
            :: live > 0 -> /* free */
                select (down : 1 .. min(SIZES, live));
                live = live - down
#if RESIZES
            :: live > 0 -> /* resize */
                select (up : 1 .. RESIZES);
                rise = RISE_RESERVED
#endif
#if EXITS
            :: slot != NONE -> /* end */
                stock_max = 0;
                ends = 1
#endif
            fi;
            call_begins()
        }
#if SETS_LIMIT
        if
        :: true
        :: up > 0 && rise == RISE -> /* a resize that finds no limit does not reserve */
            rise = (limit == UNLIMITED -> RISE_FORCED : RISE)
        fi;
#endif
#if EXITS
        if
        :: ends ->
            dead = slot;
            slot = NONE;
#if DRAINS
            owes_settling = 0;
#endif
            slot_release(dead);
            dead = NONE;
            ends = 0
        :: else -> ledger_change()
        fi;
#else
        ledger_change();
#endif
#if RESIZES
        if
        :: rise == RISE_RESERVED && !failed -> resize_ends()
        :: else
        fi;
#endif
        call_returns()
#if EXITS
    :: atomic {
            slot == NONE ->
            calls++
        }
        slot_claim();
        atomic {
            calls--;
            assert(calls != 0 || charged - credits == live)
        }
#endif
#if DEATHS
    :: atomic {
#if CALLS
            begun < CALLS;
            begun++;
#endif
            slot != NONE ->
            owner[slot] = DEAD;
            owned[slot] = 0;
            slot = NONE;
            stock_max = 0
        }
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
    byte walk;
    do
    :: d_step {
            exact = !exact;
            exact_holds = 0;
            each_thread(owes_exact, 0)
        }
        ledger_request_drain(NONE);
        exact_holds = exact
    od
}
#endif

#if SETS_LIMIT
active proctype limiter()
{
    byte wanted, walk, i;
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
        ledger_request_drain(NONE);
        limit_holds = 1
    od
}
#endif

#if EMPTIES
active proctype emptier()
{
    byte walk;
    do
    :: d_step { /* cache_release_all() */
            walk = 0;
            do
            :: walk < SLOTS ->
                stale[walk] = 1;
                walk++
            :: else -> break
            od;
            walk = 0;
            epoch_holds = 0;
            each_thread(owes_empty, 0)
        }
        ledger_request_drain(NONE);
        epoch_holds = 1
    od
}
#endif
