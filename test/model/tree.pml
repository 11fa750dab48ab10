/* Accounts in a tree of zmalloc.c as a state machine, for spin; run.sh checks it. ledger.pml says how the two are written.
 *
 * Two accounts, A and B, lie below a third one, whose limit is the tighter one. Threads allocate in both, and free what
 * any has allocated, by the credit of their stocks or by charging the line: the account first, then what is above it. One
 * of them may be refused by either, drains, and tries again. Another process removes A when nothing is in it and creates it
 * anew, in the same record, while threads go on with what they have entered. The program's own account is not here:
 * ledger.pml has it. */

#ifndef THREADS
#define THREADS 2
#endif
#ifndef SIZES
#define SIZES 1 /* allocations and frees are of 1 to SIZES bytes */
#endif
#ifndef BATCH
#define BATCH 2
#endif
#ifndef LIMIT
#define LIMIT 3 /* of the account above both */
#endif
#ifndef OWN_LIMIT
#define OWN_LIMIT 2 /* of each of them */
#endif
#ifndef ACCOUNTS
#define ACCOUNTS 2 /* 1: only A is used */
#endif
#ifndef REMOVES
#define REMOVES 0 /* A is removed, and created anew, so often */
#endif
#ifndef READER
#define READER 0
#endif
#ifndef CALLS
#define CALLS 0 /* after that many threads begin no other; 0: they go on for ever */
#endif

#define STOCK_MAX (BATCH / 2)
#define SETTLING 1
#define A 0
#define B 1
#define PARENT 2
#define NOBODY 3
#define LIVE 0
#define LEAVING 1
#define REMOVED 2

#define min(a, b) ((a) < (b) -> (a) : (b))
#define limit_of(x) ((x) == PARENT -> LIMIT : OWN_LIMIT)
#define other_of(x) (1 - (x))
#define room_of(x) (limit_of(x) > charged[x] -> limit_of(x) - charged[x] : 0)

/* Of thread t with account x. */
#define at(t, x) (2 * (t) + (x))
#if THREADS == 1
#define credits_of(x) credit[at(0, x)]
#else
#define credits_of(x) (credit[at(0, x)] + credit[at(1, x)])
#endif

byte charged[3];
byte credit[2 * THREADS];
byte ceiling[2 * THREADS];
byte state = LIVE; /* of A */
byte uses;         /* of A's record */

/* the checks': */
byte live[2];     /* blocks, from the return of the call that makes them to the start of the one that ends them */
byte calls;       /* in flight */
#if CALLS
byte begun;
#endif

inline check_covered()
{
    assert(charged[A] >= live[A] + credits_of(A) && charged[B] >= live[B] + credits_of(B));
    assert(charged[PARENT] >= live[A] + live[B] + credits_of(A) + credits_of(B));
    assert(charged[A] <= OWN_LIMIT && charged[B] <= OWN_LIMIT && charged[PARENT] <= LIMIT)
}

inline call_ends()
{
    d_step {
        calls--;
        assert(calls != 0 || charged[A] - credits_of(A) == live[A]);
        assert(calls != 0 || charged[B] - credits_of(B) == live[B]);
        assert(calls != 0 || charged[PARENT] - credits_of(A) - credits_of(B) == live[A] + live[B]);
        check_covered()
    }
}

/* stock_give(): the credit falls before what is charged, and the account is the last of its line. */
inline stock_give(x_, left, by)
{
    atomic {
        credit[at(_pid, x_)] = left;
        check_covered()
    }
    tree_lower(x_, by)
}

inline tree_lower(x_, by)
{
    atomic {
        assert(charged[PARENT] >= (by));
        charged[PARENT] = charged[PARENT] - (by)
    }
    account_lower(x_, by)
}

inline account_lower(x_, by)
{
    atomic {
        assert(charged[x_] >= (by));
        charged[x_] = charged[x_] - (by)
    }
}

/* Out: gone. Waits while A is leaving. */
inline look_at_state(x_)
{
#if REMOVES
    atomic {
        x_ != A || state != LEAVING ->
        gone = (x_ == A && (state != LIVE || uses != entered))
    }
#else
    skip
#endif
}

/* Out: refusing, NOBODY if none; gone. */
inline tree_raise(n)
{
    refusing = NOBODY;
    atomic {
        if
        :: charged[x] + (n) <= limit_of(x) -> charged[x] = charged[x] + (n)
        :: else -> refusing = x
        fi
    }
    look_at_state(x);
    if
    :: gone && refusing == NOBODY -> account_lower(x, n)
    :: !gone && refusing == NOBODY ->
        atomic {
            if
            :: charged[PARENT] + (n) <= LIMIT -> charged[PARENT] = charged[PARENT] + (n)
            :: else -> refusing = PARENT
            fi
        }
        if
        :: refusing == PARENT -> account_lower(x, n)
        :: else
        fi
    :: else
    fi
}

/* Out: held, whether it can help to try again. This thread's other stock comes at once. */
inline tree_drain()
{
    held = 0;
    if
    :: refusing == PARENT && credit[at(_pid, other_of(x))] != 0 ->
        rest = credit[at(_pid, other_of(x))];
        stock_give(other_of(x), 0, rest);
        rest = 0;
        held = 1
    :: else
    fi;
#if THREADS > 1
    ceiling[at(1 - _pid, x)] = 0;
    if
    :: refusing == PARENT -> ceiling[at(1 - _pid, other_of(x))] = 0
    :: else
    fi;
    held = 1
#endif
}

/* stock_settle() for a rise. Out: refusing; gone. Takes effect with the credit. */
inline settle_up()
{
    atomic {
        asked = (ceiling[at(_pid, x)] == 0);
        ceiling[at(_pid, x)] = SETTLING;
        mine = credit[at(_pid, x)]
    }
    refusing = NOBODY;
    look_at_state(x);
    room = room_of(x);
    room = min(room, room_of(PARENT));
    if
    :: gone -> stock_give(x, 0, mine)
    :: !gone && mine >= n ->
        kept = (asked -> 0 : min(mine - n, min(STOCK_MAX, room)));
        rest = mine - n - kept;
        atomic {
            credit[at(_pid, x)] = kept;
            live[x] = live[x] + n;
            check_covered()
        }
        tree_lower(x, rest)
    :: else ->
        do
        :: want = n - mine + (room > n - mine -> min(STOCK_MAX, room - (n - mine)) : 0);
            tree_raise(want);
            if
            :: refusing != NOBODY && !gone && want > n - mine ->
                want = n - mine;
                tree_raise(want)
            :: else
            fi;
            if
            :: gone || refusing == NOBODY || drained -> break
            :: else ->
                tree_drain();
                drained = 1;
                if
                :: held
                :: else -> break
                fi
            fi
        od;
        if
        :: gone || refusing != NOBODY ->
            d_step {
                /* With one thread nothing but what blocks have can refuse. */
                assert(THREADS > 1 || gone || (refusing == PARENT -> live[A] + live[B] + n > LIMIT : live[x] + n > OWN_LIMIT))
            }
            stock_give(x, 0, mine)
        :: else ->
            atomic {
                assert(x != A || uses == entered);
                credit[at(_pid, x)] = mine + want - n;
                live[x] = live[x] + n;
                check_covered()
            }
        fi
    fi;
    set_ceiling()
}

inline settle_down()
{
    atomic {
        asked = (ceiling[at(_pid, x)] == 0);
        ceiling[at(_pid, x)] = SETTLING;
        mine = credit[at(_pid, x)]
    }
    room = room_of(x);
    room = min(room, room_of(PARENT));
    kept = (asked -> 0 : min(mine + n, min(STOCK_MAX, room + mine + n)));
    if
    :: kept = 0 /* the owner goes on freeing */
    :: true
    fi;
    rest = mine + n - kept;
    stock_give(x, kept, rest);
    set_ceiling()
}

/* Only this thread's own mark is replaced. The room is that of before: afterwards the account may be another's. */
inline set_ceiling()
{
    atomic {
        if
        :: !gone && refusing == NOBODY && ceiling[at(_pid, x)] == SETTLING ->
            ceiling[at(_pid, x)] = 2 * min(STOCK_MAX, room)
        :: else
        fi;
        asked = 0;
        mine = 0;
        room = 0;
        kept = 0;
        rest = 0;
        want = 0;
        held = 0;
        drained = 0;
        gone = 0;
        refusing = NOBODY
    }
}

active [THREADS] proctype thread()
{
    byte x, n, mine, room, kept, rest, want, entered, refusing = NOBODY;
    bit asked, gone, held, drained;
    do
    :: atomic { /* allocates */
#if CALLS
            begun < CALLS ->
            begun++;
#endif
            calls++;
            if
            :: x = A
            :: ACCOUNTS > 1 -> x = B
            fi;
            if
            :: n = 1
            :: SIZES > 1 -> n = SIZES
            fi
        }
        atomic {
            if
            :: credit[at(_pid, x)] >= n && credit[at(_pid, x)] - n < ceiling[at(_pid, x)] ->
                credit[at(_pid, x)] = credit[at(_pid, x)] - n;
                live[x] = live[x] + n;
                goto done
            :: else
            fi
        }
        settle_up();
done:
        call_ends()
    :: atomic { /* frees what any thread has allocated */
            live[A] + live[B] > 0 ->
#if CALLS
            begun < CALLS ->
            begun++;
#endif
            calls++;
            if
            :: live[A] > 0 -> x = A
            :: live[B] > 0 -> x = B
            fi;
            n = 1;
            live[x] = live[x] - n
        }
        atomic {
            if
            :: credit[at(_pid, x)] + n < ceiling[at(_pid, x)] ->
                credit[at(_pid, x)] = credit[at(_pid, x)] + n;
                goto freed
            :: else
            fi
        }
        settle_down();
freed:
        call_ends()
#if REMOVES
    :: atomic { /* enters A as it is now */
            entered != uses && state == LIVE ->
            entered = uses
        }
#endif
    od
}

#if REMOVES
/* The record is used anew when nothing is charged: then nobody has anything of it. */
active proctype remover()
{
    byte used, held;
    do
    :: uses < REMOVES ->
        state = LEAVING;
        held = credit[at(0, A)];
#if THREADS > 1
        held = held + credit[at(1, A)];
#endif
        used = (charged[A] > held -> charged[A] - held : 0);
        if
        :: used != 0 -> state = LIVE
        :: else ->
            state = REMOVED;
            used = 0;
            ceiling[at(0, A)] = 0;
#if THREADS > 1
            ceiling[at(1, A)] = 0;
#endif
            atomic {
                charged[A] == 0 ->
                assert(live[A] == 0 && credits_of(A) == 0);
                uses++;
                state = LIVE
            }
        fi;
        held = 0;
        used = 0
    :: uses == REMOVES -> break
    od
}
#endif

#if READER
/* Whatever it sees of the account above both is within the limit, and not less than what is there at both moments. */
active proctype reader()
{
    byte sum, i;
    do
    :: d_step {
            sum = 0;
            i = 0
        }
        do
        :: i < 2 * THREADS ->
            sum = sum + credit[i];
            i++
        :: else -> break
        od;
        assert((charged[PARENT] > sum -> charged[PARENT] - sum : 0) <= LIMIT);
    od
}
#endif
