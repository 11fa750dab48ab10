/* The whole public API against a model that knows every live block, its content and its charge, what is charged
 * besides, the limit, the peak, the faults that are to come, the handlers that have to be called, the tree of accounts
 * with all that each of them counts and refuses, and how much each thread may have cached. In the custom build the
 * blocks come from an allocator that knows how much is out, which must be what is charged and what is said to be
 * cached; and that can be told to run out.
 *
 * An input is a sequence of records, one for each operation: which, on which of four threads, on which block, and
 * operands. Threads take turns: one runs while all others wait, so that an input always does the same. They end with
 * the input, or in its course, and start when one is first needed. */

#define _DEFAULT_SOURCE

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "fuzz.h"
#include "zmalloc.h"

enum {
    THREADS = 4, /* the first is the one that the fuzzer calls */
    BLOCKS = 64,
    ACCOUNTS = 12,  /* that exist at a time; */
    CREATIONS = 40, /* in one input, so that few of them are enough for the library */
    NONE = -1,      /* in place of an account: the whole program, */
    UNKNOWN = -2,
    LEVELS = 4,
    BATCH = 64 * 1024,
    TEXT = 1 << 20, /* the longest string to copy */
    RECLAIM_MOST = 16,
    CACHE_DEFAULT = 1 << 20,
    ROUNDING = 16,   /* what a class may add to a block of the custom backend, less one */
    UNTOUCHED = 7777 /* an errno that is nobody's */
};

/* What no backend has; and what a block and its alignment may be at most, headers deducted. */
static const size_t HUGE_SIZE = SIZE_MAX >> 16;
static const size_t LARGEST = (size_t)PTRDIFF_MAX - (FUZZ_PREFIX ? 4 * sizeof(size_t) : 0);

static size_t add_up(size_t a, size_t b) { return a <= SIZE_MAX - b ? a + b : SIZE_MAX; }

static size_t take_off(size_t a, size_t b) { return a > b ? a - b : 0; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* -------------------------------------------------------------- the input */

struct operation {
    unsigned char code, thread_and_block, a, b, c, d;
};

/* Small ones most often; up to 1 MiB; around powers of two; and those that nothing can grant. */
static size_t size_in(const struct operation *o)
{
    size_t low = o->b | (size_t)o->c << 8;
    const size_t impossible[] = {(size_t)PTRDIFF_MAX - o->b, (size_t)PTRDIFF_MAX + 1 + o->b, SIZE_MAX - o->b,
                                 (size_t)PTRDIFF_MAX / (1 + o->b % 15)};
    switch (o->a % 8) {
    case 0:
    case 1:
    case 2:
        return low % 256;
    case 3:
        return low % 4096;
    case 4:
        return low;
    case 5:
        return low * 16;
    case 6:
        return ((size_t)1 << o->b % 21) - 1 + o->c % 3;
    default:
        return impossible[o->c % 4];
    }
}

/* ------------------------------------------------- the custom backend's blocks */

static struct {
    size_t live;     /* bytes that are out, */
    bool pool_known; /* of which the library never gives back: */
    size_t pool;
    size_t most;     /* that may be out */
    size_t refusals; /* how often it was asked for more */
} supply = {.most = SIZE_MAX};

#if FUZZ_CUSTOM

struct supplied {
    _Alignas(max_align_t) size_t size;
};

static bool supply_grants(size_t n)
{
    bool granted = n < HUGE_SIZE && n <= take_off(supply.most, supply.live);
    supply.refusals += !granted;
    return granted;
}

static void *supply_alloc(size_t n)
{
    struct supplied *block = supply_grants(n) ? malloc(n + sizeof *block) : NULL;
    errno = EDOM; /* what the functions of C may do to it must not be seen */
    if (block == NULL)
        return NULL;
    block->size = n;
    supply.live += n;
    return block + 1;
}

static void *supply_calloc(size_t count, size_t n)
{
    void *p = count == 0 || n <= SIZE_MAX / count ? supply_alloc(count * n) : NULL;
    return p != NULL ? memset(p, 0, count * n) : NULL;
}

static void supply_free(void *p)
{
    struct supplied *block = p;
    errno = EDOM;
    if (block != NULL) {
        supply.live -= block[-1].size;
        free(block - 1);
    }
}

static void *supply_realloc(void *p, size_t n)
{
    struct supplied *old = (struct supplied *)p - 1;
    size_t had = old->size;
    errno = EDOM;
    if (n > had && !supply_grants(n - had))
        return NULL;
    struct supplied *block = realloc(old, n + sizeof *block);
    require(block != NULL);
    supply.live = supply.live - had + n;
    block->size = n;
    return block + 1;
}

#endif

/* -------------------------------------------------------------- the model */

struct block {
    void *p; /* NULL: none */
    size_t asked;
    size_t written; /* how many bytes hold the pattern */
    size_t charge;
    size_t usable;
    unsigned seed;
    bool aligned; /* by a call that takes an alignment */
    bool busy;    /* a call that uses it is under way */
    int account;
};

/* What a live account counts is of its own blocks and of those in the accounts below it. */
struct account {
    struct zmalloc_account *handle; /* NULL: there is none in this place */
    int parent;
    char path[ZMALLOC_ACCOUNT_PATH];
    size_t used, blocks, failed;
    size_t external, own_external;
    size_t limit;
    size_t peak;
    bool peak_rounded; /* threads may have had credit with it */
    size_t below;      /* how many were ever created below it */
    bool reclaim_set;
};

struct watermark {
    size_t bytes; /* 0: not set */
    size_t start; /* the use when it was set */
    bool reached;
};

/* Whether the next attempt is made to fail. */
enum forecast { PASSES, FAILS, EITHER };

/* An allocation in progress. Handlers and callbacks that run in it make calls of their own. */
struct call {
    struct call *outer;
    size_t size, alignment;
    enum zmalloc_operation operation;
    bool quiet;     /* never calls an out-of-memory handler */
    bool too_large; /* must fail for its size */
    bool resolved;  /* whether the attempt was made to fail is known: */
    bool injected;
    enum forecast forecast;
    size_t before;   /* the use when the last attempt began */
    size_t used;     /* the most that it can have been when the attempt failed */
    size_t refusals; /* of the custom backend, when the last attempt began */
    int tries;       /* that have begun */
    int reclaims;
    bool gave_up; /* the reclaim handlers said so */
    int ooms;
    int account;    /* to be charged */
    size_t has;     /* what it is charged with for the block already */
    bool is_charge; /* of bytes without a header */
    bool moves;     /* a block from one account to another, and only accounts are asked: */
    int from;
    int unasked;                  /* how many reclaim handlers of its line may yet be asked, the program's included */
    int refusing;                 /* the account whose limit refused at the last attempt that has failed */
    size_t used_before[ACCOUNTS]; /* by the accounts, when the last attempt began */
};

enum reclaim_mode {
    RECLAIM_GIVE_UP,
    RECLAIM_FREE,
    RECLAIM_RETRY,
    RECLAIM_ALLOCATE,
    RECLAIM_LEAVE,
    RECLAIM_UNLIMIT,
    RECLAIM_PURGE,
    RECLAIM_SET_CACHE
};
enum oom_mode { OOM_RETURN, OOM_ALLOCATE, OOM_FREE, OOM_FAIL_AGAIN, OOM_LEAVE, OOM_PURGE, OOM_SET_CACHE };
enum watermark_mode { WATERMARK_LOOK, WATERMARK_ALLOCATE, WATERMARK_FREE, WATERMARK_PURGE, WATERMARK_SET_CACHE };

/* When a handler that leaves by longjmp() says so. */
enum leave_mode { LEAVE_SAID_BEFORE, LEAVE_SAID_AFTER, LEAVE_UNSAID, LEAVE_MODES };

static struct {
    struct block blocks[BLOCKS];
    struct block brief[BLOCKS]; /* those that an operation allocates and frees itself */
    size_t charges;             /* of all blocks */
    size_t external;            /* that of the accounts included */
    size_t program_external;    /* without it */
    size_t reserve;             /* its charge; 0: none */
    bool replaces_reserve;      /* in a call that does */
    size_t pending;             /* what a call has charged that is still in progress, in a callback that it makes */
    unsigned seeds;

    size_t limit;
    bool exact;
    bool holds[THREADS]; /* the thread may hold credit that its next call in exact mode settles */
    size_t peak;         /* the true one */
    bool peak_rounded;   /* it may have been told with credit in it */

    struct {
        bool armed, persistent, drawn, always;
        bool persist; /* from now on all fail */
        size_t remaining, least, most;
        int owner; /* -1: all threads */
    } faults;
    unsigned paused[THREADS];
    size_t injected;

    size_t cache_bound;
    size_t may_cache[THREADS]; /* what the thread may hold, until it has followed a new bound that of the one before */
    bool starved;              /* the custom backend has refused: threads may be without a slot */

    bool reclaim_set, callback_set;
    enum reclaim_mode reclaim_mode;
    enum oom_mode oom_mode;
    enum watermark_mode watermark_mode;
    enum leave_mode leave_mode;
    bool in_reclaim, in_oom;
    /* A handler has left and has not said so: whether the next failure calls it depends on where in the stack it is. */
    bool unsaid_reclaim[THREADS], unsaid_oom[THREADS];
    int watermark_depth;
    int watermark_actions; /* how often a callback may still allocate or free */
    struct watermark watermarks[LEVELS];

    struct call *call;
    const struct operation *operation;
    int thread;
    bool allocated[THREADS]; /* the thread has a slot */

    struct account accounts[ACCOUNTS];
    int creations;
    struct zmalloc_account *removed; /* the last one, until another is created */
    int current[THREADS];            /* the account that the thread works in */
    int refusing[THREADS];           /* whose limit refused the thread's last call that was refused */

    /* These count for as long as the process lives, as the library's do. */
    size_t failures, failures_injected, reclaim_calls, reclaimed, crossings;
    size_t failures_of_accounts; /* those that the limit of an account refused */
} model;

static jmp_buf way_out;
static char context; /* what the handlers are given */
static char source[TEXT + 1];

static size_t model_used(void) { return model.charges + model.external + model.reserve + model.pending; }

static void note_peak(size_t used) { model.peak = larger(model.peak, used); }

static bool thread_lives(int thread);

static size_t threads_alive(void)
{
    size_t count = 0;
    for (int i = 0; i < THREADS; i++)
        count += thread_lives(i);
    return count;
}

static bool credit_is_held(void)
{
    for (int i = 0; i < THREADS; i++) {
        if (model.holds[i])
            return true;
    }
    return false;
}

/* -- accounts */

static struct zmalloc_account *handle_of(int account)
{
    return account != NONE ? model.accounts[account].handle : NULL;
}

static int account_of(const struct zmalloc_account *handle)
{
    int i = 0;
    while (handle != NULL && i < ACCOUNTS && model.accounts[i].handle != handle)
        i++;
    require(i < ACCOUNTS);
    return handle != NULL ? i : NONE;
}

/* Whether the account is `top` or below it. */
static bool is_below(int account, int top)
{
    while (account != NONE && account != top)
        account = model.accounts[account].parent;
    return account == top;
}

static int depth_of(int account)
{
    int depth = 0;
    for (; account != NONE; account = model.accounts[account].parent)
        depth++;
    return depth;
}

/* Moves what is charged, and the blocks, up or down by what is so to be added. */
static void account_add(int account, size_t bytes, size_t blocks)
{
    for (; account != NONE; account = model.accounts[account].parent) {
        model.accounts[account].used += bytes;
        model.accounts[account].blocks += blocks;
    }
}

/* What the threads may hold back of the account's limit, and what so may be in its peak, for each of them. */
static size_t batches_of(const struct account *a) { return a->peak_rounded ? (1 + a->below) * BATCH : 0; }

static struct zmalloc_account_stats stats_of(int account)
{
    struct zmalloc_account_stats stats = {.struct_size = sizeof stats};
    require(zmalloc_get_account_stats(handle_of(account), &stats) == 0 && stats.struct_size == sizeof stats);
    return stats;
}

/* In a watermark's callback the call around it has charged what the model does not know yet. */
static void check_accounts(void)
{
    require(zmalloc_current_account() == handle_of(model.current[model.thread]));
    for (int i = 0; i < ACCOUNTS; i++) {
        struct account *a = &model.accounts[i];
        if (a->handle == NULL)
            continue;
        struct zmalloc_account_stats stats = stats_of(i);
        a->peak = larger(a->peak, model.watermark_depth == 0 ? a->used : stats.used);
        require(stats.peak >= a->peak && stats.peak - a->peak <= THREADS * batches_of(a));
        if (model.watermark_depth != 0)
            continue;
        require(stats.used == a->used && stats.blocks == a->blocks && stats.external == a->external);
        require(stats.limit == a->limit && stats.failed == a->failed);
        require(stats.parent == handle_of(a->parent) && strcmp(stats.path, a->path) == 0);
    }
}

static void check_account(void)
{
    size_t peak = zmalloc_get_peak_memory();
    require(zmalloc_used_memory() == model_used());
    require(zmalloc_get_limit() == model.limit);
    note_peak(model_used());
    require(peak >= model.peak);
    /* While one reserve replaces another, both were there before the callback that looks here. */
    size_t both = model.replaces_reserve ? add_up(model_used(), model.reserve) : 0;
    require(peak <= add_up(larger(model.peak, both), model.peak_rounded ? THREADS * (size_t)BATCH : 0));
    require(zmalloc_get_peak_memory_time() <= (size_t)time(NULL));
    check_accounts();
}

/* After a call that has changed the use: what has been crossed was noticed. */
static void check_watermarks(void)
{
    size_t slack = model.exact && !credit_is_held() ? 0 : threads_alive() * BATCH;
    size_t used = model_used();
    if (model.watermark_depth != 0 || model.call != NULL)
        return;
    for (int i = 0; i < LEVELS; i++) {
        const struct watermark *w = &model.watermarks[i];
        if (w->bytes != 0 && !w->reached)
            require(used < (slack == 0 ? w->bytes : add_up(larger(w->bytes, w->start), slack)));
        if (w->bytes != 0 && w->reached && slack == 0)
            require(used != 0 && used > take_off(w->bytes, w->bytes / 16 + BATCH));
    }
}

/* -- the cache */

static size_t cached_now(void)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    require(zmalloc_get_stats(&stats) == 0);
    return stats.cached;
}

static size_t others_may_cache(void)
{
    size_t most = 0;
    for (int i = 0; i < THREADS; i++)
        most = add_up(most, i != model.thread && thread_lives(i) ? model.may_cache[i] : 0);
    return most;
}

/* All that the custom backend has given is charged, or cached, or what a class was rounded up by. */
static void check_supply(size_t cached)
{
    size_t blocks = model.reserve != 0;
    for (int i = 0; i < BLOCKS; i++)
        blocks += (size_t)(model.blocks[i].p != NULL) + (size_t)(model.brief[i].p != NULL);
    if (supply.pool_known && model.call == NULL && model.watermark_depth == 0) {
        size_t known = supply.pool + model.charges + model.reserve + cached;
        require(supply.live >= known && supply.live - known < blocks * ROUNDING + (blocks == 0));
    }
}

static void check_cache(void)
{
    size_t cached = cached_now();
    require(cached <= add_up(others_may_cache(), model.may_cache[model.thread]));
    check_supply(cached);
}

/* What the calling thread had cached has gone back. */
static void check_cache_is_empty(void) { require(cached_now() <= others_may_cache()); }

static void set_cache(size_t bytes)
{
    errno = UNTOUCHED;
    require(zmalloc_set_cache(bytes) == model.cache_bound);
    require(errno == UNTOUCHED);
    check_cache_is_empty();
    model.cache_bound = bytes;
    for (int i = 0; i < THREADS; i++)
        model.may_cache[i] = larger(model.may_cache[i], bytes);
    model.may_cache[model.thread] = bytes;
    check_cache();
}

static void purge(void)
{
    int error;
    errno = UNTOUCHED;
    error = zmalloc_purge();
    require((error == 0 || error == ENOTSUP) && errno == UNTOUCHED);
    check_cache_is_empty();
    check_cache();
}

/* The thread has settled, or may hold credit from now on. As others ask it to settle when they change the cache's
 * bound, it has followed that, too. */
static void use_changed(void)
{
    model.may_cache[model.thread] = model.cache_bound;
    model.holds[model.thread] = !model.exact;
    model.peak_rounded |= !model.exact;
    model.allocated[model.thread] = true;
    check_account();
    check_watermarks();
}

/* -- content */

static unsigned char pattern(unsigned seed, size_t i) { return (unsigned char)(seed * 31 + i * 7 + (i >> 8)); }

/* Of a long block its ends and some of what lies between. */
static size_t next_position(size_t i, size_t n)
{
    bool at_end = i < 1024 || i + 1024 >= n;
    return at_end ? i + 1 : smaller(i + 509, n - 1024);
}

static void write_pattern(struct block *block, size_t n)
{
    unsigned char *bytes = extend_to_usable(block->p, n);
    block->seed = model.seeds++;
    block->written = n;
    for (size_t i = 0; i < n; i = next_position(i, n))
        bytes[i] = pattern(block->seed, i);
}

/* `n` is the length by which the positions were chosen, of which `kept` are still there. */
static void check_pattern(const struct block *block, size_t n, size_t kept)
{
    const unsigned char *bytes = block->p;
    for (size_t i = 0; i < kept; i = next_position(i, n))
        require(bytes[i] == pattern(block->seed, i));
}

static void check_block(const struct block *block)
{
    require(zmalloc_size(block->p) == block->charge);
    require(zmalloc_usable_size(block->p) == block->usable);
    require(zmalloc_account_of(block->p) == handle_of(block->account));
    check_pattern(block, block->written, block->written);
}

static void check_zero(const void *p, size_t from, size_t n)
{
    const unsigned char *bytes = p;
    for (size_t i = from; i < n; i = next_position(i, n))
        require(bytes[i] == 0);
}

/* -- the course of an allocation */

/* Another try is hit only by faults that have begun to persist. */
static enum forecast forecast_fault(size_t size, bool again)
{
    bool counted = false;
    if (!model.faults.armed || model.paused[model.thread] != 0)
        return PASSES;
    if (model.faults.owner >= 0 && model.faults.owner != model.thread)
        return PASSES;
    if (size < model.faults.least || (model.faults.most != 0 && size > model.faults.most))
        return PASSES;
    if (model.faults.persist)
        return FAILS;
    if (again)
        return PASSES;
    if (model.faults.remaining != 0) {
        counted = model.faults.remaining == 1;
        model.faults.persist = counted && model.faults.persistent;
        model.faults.remaining--;
    }
    if (counted || model.faults.always)
        return FAILS;
    return model.faults.drawn ? EITHER : PASSES;
}

static void attempt_begin(struct call *call)
{
    call->gave_up = false;
    call->before = model_used();
    for (int i = 0; i < ACCOUNTS; i++)
        call->used_before[i] = model.accounts[i].used;
    call->unasked = depth_of(call->account) + 1;
    call->refusing = NONE;
    call->refusals = supply.refusals;
    call->forecast = call->too_large || call->moves ? PASSES : forecast_fault(call->size, call->tries != 0);
    call->tries++;
    call->resolved = false;
    call->injected = false;
}

static void attempt_resolve(struct call *call)
{
    if (call == NULL || call->resolved)
        return;
    size_t injected = zmalloc_faults_injected() - model.injected;
    require(injected <= 1);
    require(call->forecast == EITHER || injected == (call->forecast == FAILS));
    call->injected = injected != 0;
    call->resolved = true;
    model.injected += injected;
}

/* Whether the backend has a reason not to grant it. */
static bool backend_may_refuse(const struct call *call)
{
    return add_up(call->size, call->alignment) >= HUGE_SIZE || supply.refusals != call->refusals;
}

/* Whether nobody else refused. */
static bool backend_refused(const struct call *call)
{
    return !call->too_large && !call->injected && call->refusing == NONE && model.limit == 0 &&
           model_used() <= SIZE_MAX / 2;
}

/* What the call is charged with at most. */
static size_t charge_of(const struct call *call)
{
    size_t header = call->alignment > _Alignof(max_align_t) ? 32 + call->alignment : 16;
    return add_up(call->size, call->is_charge ? 0 : header);
}

/* The limit of an account refuses only what would pass it, as that of the program. */
static void refused_by(struct call *call, int account)
{
    call->refusing = account;
    model.refusing[model.thread] = account;
    if (account == NONE)
        return;
    const struct account *a = &model.accounts[account];
    /* A watermark's callback runs when the call that crosses it has charged its account, too. */
    size_t crossing = model.watermark_depth != 0 ? model.pending : 0;
    size_t used = add_up(larger(a->used, call->used_before[account]), crossing);
    size_t growth = take_off(charge_of(call), call->has);
    size_t held = (threads_alive() - 1) * batches_of(a);
    require(!call->too_large && !call->injected && growth != 0);
    require(is_below(call->account, account) && !(call->moves && is_below(call->from, account)));
    require(a->limit != 0 && add_up(used, growth) > take_off(a->limit, held));
}

/* Who has refused is not kept for a thread without a slot, and a callback may have been refused since; but the account
 * has counted what is final. */
static int last_refusing(bool disturbed)
{
    struct zmalloc_account *refusing = zmalloc_refusing_account();
    if (!disturbed && (refusing != NULL || !model.starved))
        return account_of(refusing);
    int i = 0;
    while (i < ACCOUNTS && (model.accounts[i].handle == NULL || stats_of(i).failed == model.accounts[i].failed))
        i++;
    return i < ACCOUNTS ? i : NONE;
}

/* Now it is final. */
static void count_refusal(const struct call *call)
{
    if (call->refusing != NONE) {
        model.accounts[call->refusing].failed++;
        model.failures_of_accounts++;
    }
}

static bool has_reclaim(int account)
{
    return account != NONE ? model.accounts[account].reclaim_set : model.reclaim_set;
}

/* Whether one of those that may yet be asked is set; they are asked from below. */
static bool reclaim_is_left(const struct call *call)
{
    bool left = call->unasked > 0 && model.reclaim_set;
    for (int i = call->account; i != NONE; i = model.accounts[i].parent)
        left |= depth_of(i) < call->unasked && has_reclaim(i);
    return left;
}

/* Whether there is a reason for an attempt to have failed. */
static void attempt_failed(struct call *call)
{
    bool limited =
        call->refusing != NONE || (!call->moves && (model.limit != 0 || model_used() > SIZE_MAX / 2)) ||
        (model.starved && call->is_charge && call->account != NONE); /* nobody tells that it was the account */
    /* The reserve may have been freed since, and a watermark's callback that noticed it may have freed a block. */
    if (!call->gave_up && call->ooms == 0)
        call->used = larger(call->before, model_used());
    require(call->too_large || call->injected || limited || backend_may_refuse(call));
}

static void call_begin(struct call *call, size_t largest)
{
    bool beyond = call->alignment > _Alignof(max_align_t) && add_up(call->size, call->alignment) > largest;
    call->too_large = call->size > largest || beyond;
    call->outer = model.call;
    model.call = call;
    if (call->alignment == 0)
        call->alignment = _Alignof(max_align_t);
    attempt_begin(call);
    errno = UNTOUCHED;
}

/* `error` is what a failure leaves in errno. */
static void call_end(struct call *call, bool failed, int error)
{
    require(errno == (failed ? error : UNTOUCHED));
    attempt_resolve(call);
    require(model.call == call);
    model.call = call->outer;
    if (failed) {
        if (call->ooms == 0) {
            refused_by(call, last_refusing(false));
            count_refusal(call);
        }
        bool reclaims = reclaim_is_left(call) && !model.in_reclaim && add_up(call->size, call->alignment) < HUGE_SIZE;
        attempt_failed(call);
        bool reports = !call->quiet && !model.in_oom;
        require(!reclaims || call->gave_up || call->reclaims == RECLAIM_MOST || model.unsaid_reclaim[model.thread]);
        require(call->ooms == reports || (call->ooms == 0 && model.unsaid_oom[model.thread]));
        model.failures++;
        model.failures_injected += call->injected;
    } else {
        require(!call->too_large && !call->injected && call->ooms == 0);
    }
    check_account();
}

static void leave_handlers(void)
{
    errno = UNTOUCHED;
    zmalloc_leave_handler();
    require(errno == UNTOUCHED);
    model.unsaid_reclaim[model.thread] = false;
    model.unsaid_oom[model.thread] = false;
}

/* From a handler, or from one that an allocation in a handler has called. A watermark's callback may not be left. */
static void leave_by_jump(void)
{
    if (model.watermark_depth != 0)
        return;
    for (const struct call *call = model.call; call != NULL; call = call->outer) {
        model.failures += call->ooms != 0;
        model.failures_injected += call->ooms != 0 && call->injected;
    }
    model.unsaid_reclaim[model.thread] |= model.in_reclaim;
    model.unsaid_oom[model.thread] |= model.in_oom;
    if (model.leave_mode == LEAVE_SAID_BEFORE)
        leave_handlers();
    longjmp(way_out, 1);
}

static void release_brief(void);

/* A handler has left by longjmp(). */
static void calls_abandoned(void)
{
    if (model.leave_mode == LEAVE_SAID_AFTER)
        leave_handlers();
    model.call = NULL;
    model.in_reclaim = false;
    model.in_oom = false;
    for (int i = 0; i < BLOCKS; i++)
        model.blocks[i].busy = model.brief[i].busy = false;
    check_account();
    release_brief();
    check_cache();
}

/* --------------------------------------------------------- operations on blocks */

static void block_forget(struct block *block)
{
    model.charges -= block->charge;
    account_add(block->account, 0 - block->charge, (size_t)0 - 1);
    *block = (struct block){.p = NULL};
}

/* Where the backend was built for less than max_align_t needs, what it gives is right for an object that fits. */
static size_t natural_alignment(size_t asked)
{
    size_t alignment = _Alignof(max_align_t);
    while (alignment > zmalloc_alignment() && alignment > larger(asked, sizeof(void *)))
        alignment /= 2;
    return alignment;
}

static void block_adopt(struct block *block, void *p, size_t asked, size_t alignment, bool aligned)
{
    size_t before = block->charge;
    size_t blocks = block->p == NULL;
    block->p = p;
    block->asked = asked;
    block->charge = zmalloc_size(p);
    block->usable = zmalloc_usable_size(p);
    block->aligned = aligned;
    model.charges += block->charge - before;
    account_add(block->account, block->charge - before, blocks);
    require((uintptr_t)p % larger(alignment, natural_alignment(asked)) == 0);
    require(block->usable >= asked && block->charge >= block->usable);
#if FUZZ_PREFIX
    require(block->usable == asked && block->charge > asked);
#endif
}

/* jemalloc's flags: zeroing, and the logarithm of an alignment. */
enum { FLAG_ZERO = 0x40, ALIGN_LOG2_MOST = 12 };

static int flags_in(const struct operation *o)
{
#if FUZZ_FLAGS
    return (o->d & 16 ? FLAG_ZERO : 0) | (o->d & 32 ? o->b % ALIGN_LOG2_MOST : 0);
#else
    (void)o;
    return 0;
#endif
}

enum acquirer {
    BY_MALLOC,
    BY_CALLOC,
    BY_CALLOC_NUM,
    BY_REALLOC,
    BY_REALLOCARRAY,
    BY_ALIGNED_ALLOC,
    BY_STRDUP,
    BY_STRNDUP,
    BY_MEMDUP,
    BY_MALLOC_USABLE,
    BY_CALLOC_USABLE,
    BY_REALLOC_USABLE,
    BY_FLAGS,
    BY_NO_TCACHE,
    ACQUIRERS
};

/* The string is the end of the source. */
static const char *source_of(size_t length) { return source + TEXT - length; }

static void *acquire(enum acquirer by, bool quiet, size_t n, size_t count, size_t alignment, int flags, size_t *usable)
{
    switch (by) {
    case BY_MALLOC:
        return quiet ? ztrymalloc(n) : zmalloc(n);
    case BY_CALLOC:
        return quiet ? ztrycalloc(n) : zcalloc(n);
    case BY_CALLOC_NUM:
        return quiet ? ztrycalloc_num(count, n) : zcalloc_num(n, count);
    case BY_REALLOC:
        return quiet ? ztryrealloc(NULL, n) : zrealloc(NULL, n);
    case BY_REALLOCARRAY:
        return quiet ? ztryreallocarray(NULL, count, n) : zreallocarray(NULL, n, count);
    case BY_ALIGNED_ALLOC:
        return quiet ? ztryaligned_alloc(alignment, n) : zaligned_alloc(alignment, n);
    case BY_STRDUP:
        return quiet ? ztrystrdup(source_of(n - 1)) : zstrdup(source_of(n - 1));
    case BY_STRNDUP:
        return quiet ? ztrystrndup(source, n - 1) : zstrndup(source_of(n - 1), n + count);
    case BY_MEMDUP:
        return quiet ? ztrymemdup(source, n) : zmemdup(source, n);
    case BY_MALLOC_USABLE:
        return quiet ? ztrymalloc_usable(n, usable) : zmalloc_usable(n, usable);
    case BY_CALLOC_USABLE:
        return quiet ? ztrycalloc_usable(n, usable) : zcalloc_usable(n, usable);
    case BY_REALLOC_USABLE:
        return quiet ? ztryrealloc_usable(NULL, n, usable) : zrealloc_usable(NULL, n, usable);
    case BY_FLAGS:
        return flags % 2 == 0 ? zmalloc_with_flags(n, flags) : zrealloc_with_flags(NULL, n, flags);
    default:
        return zmalloc_no_tcache(n);
    }
}

static bool reports_usable(enum acquirer by)
{
    return by == BY_MALLOC_USABLE || by == BY_CALLOC_USABLE || by == BY_REALLOC_USABLE;
}

static bool always_calls(enum acquirer by) { return by == BY_FLAGS || by == BY_NO_TCACHE; }

static size_t product(size_t a, size_t b) { return b != 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b; }

/* A limit of SIZE_MAX is none. */
static void set_limit(size_t n)
{
    require(zmalloc_set_limit(n) == model.limit);
    model.limit = n != SIZE_MAX ? n : 0;
}

/* A removed account is none. */
static void enter(struct zmalloc_account *handle, int account)
{
    int *current = &model.current[model.thread];
    errno = UNTOUCHED;
    require(zmalloc_enter_account(handle) == handle_of(*current) && errno == UNTOUCHED);
    *current = account;
    if (model.starved && zmalloc_current_account() == NULL)
        *current = NONE;
    require(zmalloc_current_account() == handle_of(*current));
}

static void pause_faults(bool pause)
{
    if (pause) {
        zmalloc_faults_pause();
        model.paused[model.thread]++;
    } else if (model.paused[model.thread] != 0) {
        zmalloc_faults_resume();
        model.paused[model.thread]--;
    }
}

/* The limit refuses only what would pass it, but for what other threads may hold back: without it the call is granted,
 * and the charge is known. */
static void check_refusal(const struct call *refused, size_t had)
{
    struct call call = {.size = refused->size,
                        .alignment = refused->alignment,
                        .operation = ZMALLOC_OPERATION_ALLOCATE,
                        .quiet = true,
                        .account = NONE};
    size_t limit = model.limit;
    int current = model.current[model.thread];
    size_t held = 0;
    for (int i = 0; i < THREADS; i++)
        held += i != model.thread && thread_lives(i) ? BATCH : 0;
    if (limit == 0 || refused->refusing != NONE || refused->injected || model.call != NULL ||
        add_up(call.size, call.alignment) >= HUGE_SIZE || supply.most != SIZE_MAX)
        return;
    pause_faults(true);
    set_limit(0);
    enter(NULL, NONE);
    call_begin(&call, LARGEST);
    void *p = ztryaligned_alloc(call.alignment, call.size);
    size_t charge = zmalloc_size(p);
    model.charges += charge;
    call_end(&call, p == NULL, ENOMEM);
    if (p != NULL) {
        /* A backend may grant a resize more than a block of its own. */
        size_t slack = had == 0 || FUZZ_PREFIX || FUZZ_FLAGS ? 0 : call.size / 8 + 64;
        require(add_up(refused->used, take_off(charge, had) + slack) > take_off(limit, held));
        zfree(p);
        model.charges -= charge;
        use_changed();
    }
    enter(handle_of(current), current);
    set_limit(limit);
    pause_faults(false);
}

/* After growth of the account, but for those that `from` is in or below too; NONE: none is left out. In a watermark's
 * callback the model still has what the call around it frees. */
static void check_limits(int account, int from)
{
    for (; !is_below(from, account); account = model.accounts[account].parent) {
        size_t limit = model.accounts[account].limit;
        require(limit == 0 || stats_of(account).used <= limit);
    }
}

static void operate_acquire(struct block *block, enum acquirer by, bool quiet, const struct operation *o)
{
    size_t n = size_in(o);
    size_t count = 1;
    size_t alignment = 0;
    size_t usable = UNTOUCHED;
    int flags = by == BY_FLAGS ? flags_in(o) : 0;
    if (by == BY_CALLOC_NUM || by == BY_REALLOCARRAY)
        count = o->d >> 5;
    if (by == BY_STRDUP || by == BY_STRNDUP || by == BY_MEMDUP)
        n = 1 + n % TEXT;
    if (by == BY_ALIGNED_ALLOC)
        alignment = (size_t)1 << (o->d / 4 % 8 == 7 ? o->b % (8 * sizeof(size_t)) : o->d / 4 % 8 * 2);
    if (by == BY_ALIGNED_ALLOC && alignment > ((size_t)1 << 20) && alignment < HUGE_SIZE)
        alignment = 1 << 20;
    if (flags % FLAG_ZERO != 0)
        alignment = (size_t)1 << flags % FLAG_ZERO;
    bool zeroes = by == BY_CALLOC || by == BY_CALLOC_NUM || by == BY_CALLOC_USABLE || (flags & FLAG_ZERO) != 0;
    size_t total = product(n, count);
    size_t refused = zmalloc_used_memory();

    struct call call = {.size = total,
                        .alignment = alignment,
                        .operation = ZMALLOC_OPERATION_ALLOCATE,
                        .quiet = quiet && !always_calls(by),
                        .account = model.current[model.thread]};
    block->busy = true;
    call_begin(&call, LARGEST);
    void *p = acquire(by, quiet, n, count, alignment, flags, reports_usable(by) ? &usable : NULL);
    block->busy = false;
    block->account = call.account;
    if (p != NULL)
        block_adopt(block, p, total, alignment, alignment != 0);
    call_end(&call, p == NULL, ENOMEM);
    if (p == NULL) {
        require(usable == (reports_usable(by) ? 0 : UNTOUCHED));
        require(model.limit == 0 || zmalloc_used_memory() <= larger(model.limit, refused));
        if (o->d & 2)
            check_refusal(&call, 0);
        return;
    }
    require(model.limit == 0 || model_used() <= model.limit);
    check_limits(block->account, NONE);
    require(zmalloc_account_of(p) == handle_of(block->account));
    require(!reports_usable(by) || usable == block->usable);
    if (zeroes)
        check_zero(p, 0, total);
    if (by == BY_STRDUP || by == BY_STRNDUP)
        require(memcmp(p, by == BY_STRNDUP && quiet ? source : source_of(n - 1), n - 1) == 0 &&
                ((char *)p)[n - 1] == '\0');
    if (by == BY_MEMDUP)
        require(memcmp(p, source, n) == 0);
    write_pattern(block, reports_usable(by) ? usable : total);
    use_changed();
}

enum resizer { TO_REALLOC, TO_REALLOCARRAY, TO_USABLE, TO_FLAGS, RESIZERS };

static void *resize(enum resizer by, bool quiet, void *p, size_t n, size_t count, int flags, size_t *usable)
{
    switch (by) {
    case TO_REALLOC:
        return quiet ? ztryrealloc(p, n) : zrealloc(p, n);
    case TO_REALLOCARRAY:
        return quiet ? ztryreallocarray(p, count, n) : zreallocarray(p, n, count);
    case TO_USABLE:
        return quiet ? ztryrealloc_usable(p, n, usable) : zrealloc_usable(p, n, usable);
    default:
        return zrealloc_with_flags(p, n, flags);
    }
}

static void operate_resize(struct block *block, enum resizer by, bool quiet, const struct operation *o)
{
    size_t n = size_in(o);
    size_t count = by == TO_REALLOCARRAY ? o->d >> 5 : 1;
    size_t usable = UNTOUCHED;
    int flags = by == TO_FLAGS ? flags_in(o) : 0;
    size_t alignment = flags % FLAG_ZERO != 0 ? (size_t)1 << flags % FLAG_ZERO : 0;
    size_t total = product(n, count);
    struct block old = *block;

    struct call call = {.size = total,
                        .alignment = alignment,
                        .operation = ZMALLOC_OPERATION_RESIZE,
                        .quiet = quiet && by != TO_FLAGS,
                        .account = block->account,
                        .has = block->charge};
    check_block(block);
    block->busy = true;
    if (total == 0) {
        errno = UNTOUCHED;
        require(resize(by, quiet, block->p, n, count, flags, &usable) == NULL);
        require(errno == UNTOUCHED && usable == (by == TO_USABLE ? 0 : UNTOUCHED));
        block_forget(block);
        use_changed();
        return;
    }
    call_begin(&call, LARGEST);
    void *p = resize(by, quiet, block->p, n, count, flags, &usable);
    block->busy = false;
    if (p != NULL)
        block_adopt(block, p, total, alignment, alignment != 0);
    call_end(&call, p == NULL, ENOMEM);
    if (p == NULL) {
        require(usable == (by == TO_USABLE ? 0 : UNTOUCHED));
        check_block(block);
        if (o->d & 2)
            check_refusal(&call, old.charge);
        return;
    }
    require(model.limit == 0 || block->charge <= old.charge || model_used() <= model.limit);
    check_limits(block->charge > old.charge ? block->account : NONE, NONE);
    require(by != TO_USABLE || usable == block->usable);
    check_pattern(block, old.written, smaller(old.written, total));
    if ((flags & FLAG_ZERO) != 0)
        check_zero(p, smaller(old.usable, total), total);
    write_pattern(block, by == TO_USABLE ? usable : total);
    if (block->charge != old.charge)
        use_changed();
}

enum releaser { FREE, FREE_USABLE, FREE_WITH_SIZE, FREE_SIZED, FREE_FLAGS, FREE_NO_TCACHE, RELEASERS };

static void operate_release(struct block *block, enum releaser by)
{
    struct block old = *block;
    size_t usable = UNTOUCHED;
    if (old.p != NULL)
        check_block(block);
    else if (by == FREE_WITH_SIZE || by == FREE_SIZED)
        by = FREE;
    errno = UNTOUCHED;
    *block = (struct block){.p = NULL};
    /* Until the call is through, a callback that it makes sees the block as charged in the model. */
    switch (by) {
    case FREE_USABLE:
        zfree_usable(old.p, &usable);
        require(usable == old.usable);
        break;
    case FREE_WITH_SIZE:
        zfree_with_size(old.p, old.usable);
        break;
    case FREE_SIZED:
        if (old.aligned)
            zfree(old.p);
        else
            zfree_sized(old.p, old.asked);
        break;
    case FREE_FLAGS:
        zfree_with_flags(old.p, 0);
        break;
    case FREE_NO_TCACHE:
        zfree_no_tcache(old.p);
        break;
    default:
        zfree(old.p);
    }
    require(errno == UNTOUCHED);
    model.charges -= old.charge;
    account_add(old.p != NULL ? old.account : NONE, 0 - old.charge, (size_t)0 - 1);
    if (old.p != NULL)
        use_changed();
    check_account();
}

static struct block *any_block(size_t from)
{
    for (size_t i = 0; i < BLOCKS; i++) {
        struct block *block = &model.blocks[(from + i) % BLOCKS];
        if (block->p != NULL && !block->busy)
            return block;
    }
    return NULL;
}

static struct block *no_block(void)
{
    for (size_t i = 0; i < BLOCKS; i++) {
        if (model.blocks[i].p == NULL && !model.blocks[i].busy)
            return &model.blocks[i];
    }
    return NULL;
}

static void release_brief(void)
{
    for (struct block *b = model.brief; b != model.brief + BLOCKS; b++) {
        if (b->p != NULL)
            operate_release(b, FREE);
    }
}

/* What handlers and callbacks do. */
static void allocate_inside(bool quiet, size_t n)
{
    struct block *block = no_block();
    const struct operation inside = {.a = 4, .b = (unsigned char)n, .c = (unsigned char)(n >> 8)};
    if (block != NULL)
        operate_acquire(block, BY_MALLOC, quiet, &inside);
}

static bool free_inside(void)
{
    struct block *block = any_block(model.operation != NULL ? model.operation->b : 0);
    if (block != NULL)
        operate_release(block, FREE);
    return block != NULL;
}

/* --------------------------------------------------------------- handlers */

static void set_account_limit(int account, size_t n)
{
    errno = UNTOUCHED;
    require(zmalloc_set_account_limit(handle_of(account), n) == 0 && errno == UNTOUCHED);
    model.accounts[account].limit = n != SIZE_MAX ? n : 0;
}

static int act_on_reclaim(void)
{
    switch (model.reclaim_mode) {
    case RECLAIM_FREE:
        return free_inside();
    case RECLAIM_RETRY:
        return 1;
    case RECLAIM_ALLOCATE:
        allocate_inside(false, 3000);
        return 0;
    case RECLAIM_LEAVE:
        leave_by_jump();
        return 0;
    case RECLAIM_UNLIMIT:
        if (model.call->refusing != NONE)
            set_account_limit(model.call->refusing, 0);
        else
            set_limit(0);
        return 1;
    case RECLAIM_PURGE:
        purge();
        return free_inside();
    case RECLAIM_SET_CACHE:
        set_cache(model.cache_bound != 0 ? 0 : CACHE_DEFAULT);
        return free_inside();
    default:
        return 0;
    }
}

/* The handlers are asked from that of the account that was to be charged up to the program's, and none is left out. */
static void check_turn(struct call *call, int account)
{
    require(is_below(call->account, account) && depth_of(account) < call->unasked);
    for (int i = call->account; i != account; i = model.accounts[i].parent)
        require(depth_of(i) >= call->unasked || !has_reclaim(i));
    call->unasked = depth_of(account);
}

static int reclaim(size_t needed, void *ctx)
{
    struct call *call = model.call;
    int account = ctx != &context ? (int)((struct account *)ctx - model.accounts) : NONE;
    size_t before = model_used();
    require(has_reclaim(account) && !model.in_reclaim && call != NULL && !call->gave_up);
    require(needed == call->size && !call->too_large && call->reclaims < RECLAIM_MOST);
    attempt_resolve(call);
    bool first = call->unasked == depth_of(call->account) + 1;
    if (first)
        refused_by(call, last_refusing(false));
    check_turn(call, account);
    attempt_failed(call);
    check_account();
    if (first && backend_refused(call))
        check_cache_is_empty();
    model.unsaid_reclaim[model.thread] = false;
    model.reclaim_calls++;
    model.in_reclaim = true;
    errno = EDOM;
    int again = act_on_reclaim();
    model.in_reclaim = false;
    model.reclaimed += take_off(before, model_used());
    call->gave_up = again == 0 && !reclaim_is_left(call);
    if (again != 0) {
        call->reclaims++;
        attempt_begin(call);
    }
    errno = EDOM;
    return again;
}

static void act_on_oom(void)
{
    static const struct operation impossible = {.a = 7, .c = 1};
    switch (model.oom_mode) {
    case OOM_ALLOCATE:
        allocate_inside(false, 5000);
        break;
    case OOM_FREE:
        free_inside();
        break;
    case OOM_FAIL_AGAIN:
        if (no_block() != NULL)
            operate_acquire(no_block(), BY_MALLOC, false, &impossible);
        break;
    case OOM_LEAVE:
        leave_by_jump();
        break;
    case OOM_PURGE:
        purge();
        break;
    case OOM_SET_CACHE:
        set_cache(model.cache_bound != 0 ? 0 : CACHE_DEFAULT);
        break;
    default:
        break;
    }
}

static void out_of_memory(int refusing)
{
    struct call *call = model.call;
    require(call != NULL && !call->quiet && !model.in_oom && call->ooms == 0);
    require(errno == ENOMEM);
    attempt_resolve(call);
    refused_by(call, refusing);
    count_refusal(call);
    attempt_failed(call);
    if (model.reserve != 0) {
        model.holds[model.thread] |= !model.exact;
        model.peak_rounded |= !model.exact;
    }
    model.reserve = 0;
    check_account();
    if (backend_refused(call) && !call->gave_up && model.watermark_mode == WATERMARK_LOOK)
        check_cache_is_empty();
    model.unsaid_oom[model.thread] = false;
    call->ooms++;
    model.in_oom = true;
    act_on_oom();
    model.in_oom = false;
    errno = EDOM;
}

static void handle_oom(size_t size)
{
    require(!model.callback_set && model.call != NULL && size == model.call->size);
    /* A watermark's callback that noticed that the reserve was freed may have been refused since. */
    out_of_memory(last_refusing(model.reserve != 0 && model.watermark_mode == WATERMARK_ALLOCATE));
}

static void handle_oom_event(const struct zmalloc_oom *event, void *ctx)
{
    const struct call *call = model.call;
    require(model.callback_set && ctx == &context && call != NULL);
    require(event->operation == call->operation && event->size == call->size && event->alignment == call->alignment);
    /* The reserve has been freed since, and a watermark's callback may have allocated or freed at that. */
    require(event->used == model_used() || (model.reserve != 0 && model.watermark_actions == 0));
    require(event->limit == model.limit && event->caller != NULL);
    out_of_memory(account_of(event->account));
    require(event->account == NULL || event->reason == ZMALLOC_REASON_LIMIT);
    require((event->reason == ZMALLOC_REASON_INJECTED) == call->injected);
    require((event->reason == ZMALLOC_REASON_OVERFLOW) == call->too_large);
    require(event->reason != ZMALLOC_REASON_BACKEND || backend_may_refuse(call));
}

/* It is called before the call that crosses has returned, whose charge the model learns here. */
static void crossed(int level, int rising, size_t used, void *ctx)
{
    require(level >= 0 && level < LEVELS && ctx == &context);
    struct watermark *w = &model.watermarks[level];
    size_t pending = model.pending;
    require(w->bytes != 0 && w->reached == !rising);
    require(rising ? used >= w->bytes : used <= take_off(w->bytes, w->bytes / 16 + BATCH));
    require(used == zmalloc_used_memory());
    w->reached = rising;
    model.crossings++;
    attempt_resolve(model.call);
    model.pending += used - model_used();
    note_peak(used);
    model.watermark_depth++;
    check_account();
    if (model.watermark_actions > 0 && model.watermark_mode != WATERMARK_LOOK) {
        model.watermark_actions--;
        if (model.watermark_mode == WATERMARK_ALLOCATE)
            allocate_inside(true, 20000);
        else if (model.watermark_mode == WATERMARK_PURGE)
            purge();
        else if (model.watermark_mode == WATERMARK_SET_CACHE)
            set_cache(model.cache_bound != 0 ? 0 : CACHE_DEFAULT);
        else
            free_inside();
    }
    model.watermark_depth--;
    model.pending = pending;
    errno = EDOM;
}

/* --------------------------------------------------------- other operations */

/* By 0 bytes is no change: it need not notice a watermark that was set meanwhile. A thread needs no slot for it. */
static void external_changed(size_t n)
{
    bool has_slot = model.allocated[model.thread];
    if (n != 0)
        use_changed();
    else
        check_account();
    model.allocated[model.thread] = has_slot;
}

/* Bytes to be added to what an account, or the program alone, has. */
static void external_add(int account, size_t n)
{
    if (account == NONE)
        model.program_external += n;
    else
        model.accounts[account].own_external += n;
    model.external += n;
    account_add(account, n, 0);
    for (; account != NONE; account = model.accounts[account].parent)
        model.accounts[account].external += n;
}

static void charge_external(int account, size_t n, bool by_program)
{
    struct call call = {
        .size = n, .operation = ZMALLOC_OPERATION_ALLOCATE, .quiet = true, .account = account, .is_charge = true};
    call_begin(&call, PTRDIFF_MAX);
    int error = by_program ? zmalloc_charge_external(n) : zmalloc_charge_external_to_account(handle_of(account), n);
    require(error == 0 || error == ENOMEM);
    external_add(account, error == 0 ? n : 0);
    call_end(&call, error != 0, UNTOUCHED);
    if (error == 0) {
        require(model.limit == 0 || n == 0 || model_used() <= model.limit);
        check_limits(n != 0 ? account : NONE, NONE);
        external_changed(n);
    }
}

static void uncharge_external(int account, size_t n, bool by_program)
{
    size_t given = smaller(n, account != NONE ? model.accounts[account].own_external : model.program_external);
    errno = UNTOUCHED;
    if (by_program)
        zmalloc_uncharge_external(n);
    else
        zmalloc_uncharge_external_from_account(handle_of(account), n);
    require(errno == UNTOUCHED);
    external_add(account, 0 - given);
    external_changed(given);
}

static void operate_charge(const struct operation *o) { charge_external(NONE, size_in(o), true); }

static void operate_uncharge(const struct operation *o)
{
    uncharge_external(NONE, o->d & 1 ? SIZE_MAX : size_in(o), true);
}

static void operate_limit(const struct operation *o)
{
    size_t n = size_in(o);
    size_t set;
    switch (o->d % 4) {
    case 0:
        set_limit(n);
        break;
    case 1:
        set_limit(add_up(model_used(), n));
        break;
    case 2:
        set_limit(take_off(model_used(), n));
        break;
    default:
        set = zmalloc_set_limit_from_system(o->b);
        require(set == 0 || (o->b >= 1 && o->b <= 100));
        model.limit = set != 0 ? set : model.limit;
    }
}

static void set_exact(bool on)
{
    require(zmalloc_set_exact(on ? 2 : 0) == model.exact);
    model.exact = on;
    model.peak_rounded |= !on;
    for (int i = 0; i < ACCOUNTS; i++)
        model.accounts[i].peak_rounded |= !on;
}

static void reset_peak(void)
{
    zmalloc_reset_peak_memory();
    model.holds[model.thread] = false;
    model.peak = model_used();
    model.peak_rounded = !model.exact || credit_is_held();
}

static void operate_faults(const struct operation *o)
{
    const struct zmalloc_faults faults = {
        .after = o->b % 32,
        .persistent = o->a & 1,
        .per_million = o->a & 2 ? (o->a & 4 ? 1000000u : 100000u) : 0,
        .seed = o->c * 0x100000001ULL,
        .min_size = o->a & 8 ? (size_t)1 << o->c % 16 : 0,
        .max_size = o->a & 16 ? (size_t)1 << o->d % 16 : 0,
        .this_thread = o->a & 32,
    };
    zmalloc_inject_faults(&faults);
    model.faults.armed = true;
    model.faults.persist = false;
    model.faults.persistent = faults.persistent;
    model.faults.drawn = faults.per_million != 0;
    model.faults.always = faults.per_million == 1000000;
    model.faults.remaining = faults.after;
    model.faults.least = faults.min_size;
    model.faults.most = faults.max_size;
    model.faults.owner = faults.this_thread ? model.thread : -1;
    model.injected = 0;
    require(zmalloc_faults_injected() == 0);
}

static void fail_after(size_t n)
{
    zmalloc_fail_after(n);
    memset(&model.faults, 0, sizeof model.faults);
    model.faults.armed = n != 0;
    model.faults.persist = false;
    model.faults.remaining = n;
    model.faults.owner = -1;
    model.injected = n != 0 ? 0 : model.injected;
}

static void set_handlers(bool reclaims, bool calls_back)
{
    void *before = &before;
    require(zmalloc_set_reclaim_handler(reclaims ? reclaim : NULL, &context, &before) ==
            (model.reclaim_set ? reclaim : NULL));
    require(before == (model.reclaim_set ? &context : NULL));
    require(zmalloc_set_oom_callback(calls_back ? handle_oom_event : NULL, &context, &before) ==
            (model.callback_set ? handle_oom_event : NULL));
    require(before == (model.callback_set ? &context : NULL));
    require(zmalloc_set_oom_handler(handle_oom) == handle_oom);
    model.reclaim_set = reclaims;
    model.callback_set = calls_back;
}

/* The highest numbers are those of the modes that came last, so that inputs that are older keep their meaning. */
enum { MODES_LAST = 240 };

static unsigned mode_in(unsigned char number, unsigned first, unsigned last)
{
    return number < MODES_LAST ? number % first : first + number % last;
}

static void operate_handlers(const struct operation *o)
{
    model.reclaim_mode = mode_in(o->b, RECLAIM_PURGE, 2);
    model.oom_mode = mode_in(o->c, OOM_PURGE, 2);
    model.watermark_mode = mode_in(o->d, WATERMARK_PURGE, 2);
    set_handlers(o->a & 1, o->a & 2);
}

static void set_watermark(int level, size_t bytes, bool with_callback)
{
    int error = zmalloc_set_watermark(level, bytes, with_callback ? crossed : NULL, &context);
    require(error == (level >= 0 && level < LEVELS ? 0 : EINVAL));
    if (error == 0)
        model.watermarks[level] = (struct watermark){with_callback ? bytes : 0, model_used(), false};
}

static void set_reserve(size_t n)
{
    struct call call = {.size = n, .operation = ZMALLOC_OPERATION_ALLOCATE, .quiet = true, .account = NONE};
    int error;
    /* What a callback did would be on top of a reserve that is gone, or of two of them. */
    if (n != 0) {
        call_begin(&call, LARGEST);
        model.watermark_actions = 0;
    } else {
        model.reserve = 0;
    }
    model.replaces_reserve = n != 0;
    error = zmalloc_set_oom_reserve(n);
    model.replaces_reserve = false;
    require(error == 0 || (error == ENOMEM && n != 0));
    if (error == 0) {
        size_t rest = model_used() - model.reserve;
        model.reserve = zmalloc_used_memory() - rest;
        require(n != 0 ? model.reserve >= n && model.reserve <= 2 * n + BATCH : model.reserve == 0);
        note_peak(call.before + model.reserve); /* both were there for a moment */
    }
    if (n != 0)
        call_end(&call, error != 0, ENOMEM);
    if (n != 0 && error == 0)
        use_changed();
    check_account();
}

static void check_stats(void)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    size_t with_slot = 0;
    for (int i = 0; i < THREADS; i++)
        with_slot += model.allocated[i] && thread_lives(i);
    require(zmalloc_get_stats(&stats) == 0 && stats.struct_size == sizeof stats);
    require(stats.used == model_used() && stats.limit == model.limit && stats.external == model.external);
    require(stats.peak == zmalloc_get_peak_memory());
    require((stats.threads >= with_slot || model.starved) && stats.threads <= threads_alive());
    require(stats.failed_overflow + stats.failed_limit + stats.failed_backend + stats.failed_injected ==
            model.failures);
    require(stats.failed_injected == model.failures_injected);
    require(stats.reclaim_calls == model.reclaim_calls && stats.reclaimed == model.reclaimed);
    require(stats.watermark_crossings == model.crossings);
    stats.struct_size = 2 * sizeof(size_t);
    stats.peak = UNTOUCHED;
    require(zmalloc_get_stats(&stats) == 0 && stats.used == model_used() && stats.peak == UNTOUCHED);
    stats.struct_size = sizeof(size_t);
    require(zmalloc_get_stats(&stats) == EINVAL);
}

/* What changes nothing in the account. */
static void operate_look(const struct operation *o)
{
    size_t allocated, active, resident;
    long long value;
    errno = UNTOUCHED;
    switch (o->a % 8) {
    case 0:
        check_stats();
        break;
    case 1:
        purge();
        break;
    case 2:
        if (jemalloc_purge() == 0)
            check_cache_is_empty();
        set_jemalloc_bg_thread(0);
        break;
    case 3:
        zlibc_trim();
        break;
    case 4:
        zlibc_free(strdup(zmalloc_backend()));
        require(zmalloc_get_allocator_info(&allocated, &active, &resident) ==
                (allocated != ZMALLOC_UNKNOWN && active != ZMALLOC_UNKNOWN && resident != ZMALLOC_UNKNOWN));
        break;
    case 5:
        require(zmalloc_get_rss() != 0 && zmalloc_get_memory_size() != 0);
        break;
    case 6:
        require(zmalloc_get_cgroup_limit() != 0 && zmalloc_get_cgroup_usage() != 0);
        break;
    default:
        require(get_proc_stat_ll(o->b, &value) == 0 || o->b != 2);
        require(zmalloc_get_private_dirty(-2) == ZMALLOC_UNKNOWN);
        require(zmalloc_get_smap_bytes_by_field("Rss:", -2) == ZMALLOC_UNKNOWN);
    }
    /* These are the system's; only the numbers of the os layer promise to leave it alone. */
    require(errno == UNTOUCHED || o->a % 8 < 5);
}

/* Errors of the caller change nothing and call no handler. */
static void operate_wrongly(const struct operation *o)
{
    size_t alignment = o->b % 4 == 0 ? 0 : 2 * size_in(o) + 3;
    errno = UNTOUCHED;
    switch (o->a % 4) {
    case 0:
        if ((alignment & (alignment - 1)) == 0 && alignment != 0)
            alignment = 3;
        require((o->d & 1 ? ztryaligned_alloc(alignment, 10) : zaligned_alloc(alignment, 10)) == NULL);
        require(errno == EINVAL);
        break;
    case 1:
#if !FUZZ_FLAGS
        require(zmalloc_with_flags(10, 1 + o->b) == NULL && errno == EINVAL);
#endif
        break;
    case 2:
        require(zmalloc_replace_allocator(malloc, realloc, calloc, NULL) != 0);
        break;
    default:
        require(zmalloc_size(NULL) == 0 && zmalloc_usable_size(NULL) == 0);
        zmadvise_dontneed(NULL);
        require(errno == UNTOUCHED);
    }
}

static void operate_dontneed(struct block *block)
{
    if (block->p != NULL) {
        check_block(block);
        zmadvise_dontneed(block->p);
        write_pattern(block, block->written);
        check_block(block);
    }
}

/* ------------------------------------------------------ operations on the cache */

static void operate_cache(const struct operation *o)
{
    switch (o->a / 8 % 8) {
    case 0:
        set_cache(0);
        break;
    case 1:
        set_cache(o->b);
        break;
    case 2:
        set_cache(4096);
        break;
    case 3:
        set_cache(SIZE_MAX - o->b);
        break;
    case 4:
    case 5:
        set_cache(size_in(o));
        break;
    default:
        set_cache(CACHE_DEFAULT);
    }
}

/* A number of blocks of one size, or of sizes that differ by a step, come and go in some order. */
static void operate_burst(const struct operation *o)
{
    size_t count = 1 + o->d % BLOCKS;
    size_t step = o->d < 128 ? 0 : o->a / 8;
    for (size_t i = 0; i < count; i++) {
        size_t n = (o->b | (size_t)o->c << 8) % 4352 + i * step;
        const struct operation one = {.a = 4, .b = (unsigned char)n, .c = (unsigned char)(n >> 8), .d = o->d & 1};
        operate_acquire(&model.brief[i], (o->d + i) % BY_ALIGNED_ALLOC, o->d & 1, &one);
    }
    for (size_t i = 0; i < count; i++)
        operate_release(&model.brief[o->a & 1 ? i : count - 1 - i], (o->a + i) % RELEASERS);
}

/* Small steps up and down, most of them within a class. */
static void operate_steps(struct block *block, const struct operation *o)
{
    for (size_t i = 0; i <= o->d % 16 && block->p != NULL; i++) {
        size_t n = o->a & 1 ? block->asked + o->b % 64 : take_off(block->asked, o->b % 64);
        struct operation one = {.a = 4, .b = (unsigned char)n, .c = (unsigned char)(n >> 8), .d = o->d >> 4 & 1};
        if (i == o->c % 16) /* far away once */
            one.c ^= 1 + o->c / 16;
        operate_resize(block, o->a / 8 % TO_REALLOCARRAY == 0 ? TO_REALLOC : TO_USABLE, one.d, &one);
    }
}

/* Every block, or every place for one: what one thread allocates, another one can free. */
static void operate_all(const struct operation *o)
{
    for (size_t i = 0; i < BLOCKS; i++) {
        struct block *block = &model.blocks[i];
        const struct operation one = {.a = 4, .b = o->b, .c = o->c % 8, .d = o->d & 1};
        if (o->a & 1)
            operate_release(block, o->d / 2 % RELEASERS);
        else if (block->p == NULL)
            operate_acquire(block, o->d / 2 % BY_ALIGNED_ALLOC, o->d & 1, &one);
    }
}

/* ------------------------------------------------------- operations on accounts */

/* A live one, or none. */
static int account_in(const struct operation *o)
{
    for (int i = 0; i < ACCOUNTS && o->d < 240; i++) {
        int account = (o->d + i) % ACCOUNTS;
        if (model.accounts[account].handle != NULL)
            return account;
    }
    return NONE;
}

/* What functions that only an account can be given return when it is none. */
static int error_of(int account)
{
    if (!FUZZ_PREFIX)
        return ENOTSUP;
    return account != NONE ? 0 : EINVAL;
}

static bool has_child(int account, const char *path)
{
    for (int i = 0; i < ACCOUNTS; i++) {
        const struct account *a = &model.accounts[i];
        if (a->handle != NULL && a->parent == account && (path == NULL || strcmp(a->path, path) == 0))
            return true;
    }
    return false;
}

static void account_create(int parent, const char *name)
{
    char path[ZMALLOC_ACCOUNT_PATH + ZMALLOC_ACCOUNT_NAME + 2] = "";
    int place = 0, expected = 0;
    size_t refusals = supply.refusals;
    while (place < ACCOUNTS && model.accounts[place].handle != NULL)
        place++;
    if (place == ACCOUNTS || model.creations == CREATIONS)
        return;
    if (parent != NONE)
        strcat(strcpy(path, model.accounts[parent].path), "/");
    strcat(path, name);
    if (!FUZZ_PREFIX)
        expected = ENOTSUP;
    else if (depth_of(parent) == ZMALLOC_ACCOUNT_DEPTH)
        expected = EINVAL;
    else if (has_child(parent, path))
        expected = EEXIST;
    errno = UNTOUCHED;
    struct zmalloc_account *handle = zmalloc_account_create(name, handle_of(parent));
    if (handle == NULL) {
        require(errno == expected || (errno == ENOMEM && supply.refusals != refusals));
        return;
    }
    require(expected == 0 && errno == UNTOUCHED);
    for (int i = 0; i < ACCOUNTS; i++)
        require(model.accounts[i].handle != handle);
    model.accounts[place] = (struct account){.handle = handle, .parent = parent, .peak_rounded = !model.exact};
    strcpy(model.accounts[place].path, path);
    for (int i = parent; i != NONE; i = model.accounts[i].parent)
        model.accounts[i].below++;
    require(zmalloc_account_find(path) == handle);
    model.removed = NULL;
    model.creations++;
}

static void operate_create(const struct operation *o)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", " ~\"", "0123456789abcdef0123456789ABCDE", "g h"};
    static const char *const wrong[] = {"", "a/b", "a:b", "a\nb", "\x7f", "0123456789abcdef0123456789ABCDEF", NULL};
    if (o->c % 16 != 0) {
        account_create(account_in(o), names[o->b % 8]);
        return;
    }
    errno = UNTOUCHED;
    require(zmalloc_account_create(wrong[o->b % 7], handle_of(account_in(o))) == NULL);
    require(errno == (FUZZ_PREFIX ? EINVAL : ENOTSUP));
}

static void account_remove(int account)
{
    int expected = error_of(account);
    if (expected == 0 && (model.accounts[account].used != 0 || has_child(account, NULL)))
        expected = EBUSY;
    errno = UNTOUCHED;
    require(zmalloc_account_remove(handle_of(account)) == expected && errno == UNTOUCHED);
    if (expected != 0)
        return;
    model.removed = handle_of(account);
    model.accounts[account] = (struct account){.handle = NULL};
    for (int i = 0; i < THREADS; i++) {
        model.current[i] = model.current[i] != account ? model.current[i] : NONE;
        model.refusing[i] = model.refusing[i] != account ? model.refusing[i] : UNKNOWN;
    }
}

static void operate_move(struct block *block, int account)
{
    if (block->p == NULL) {
        require(zmalloc_move_to_account(NULL, handle_of(account)) == 0);
        return;
    }
    check_block(block);
    struct call call = {.size = block->charge,
                        .operation = ZMALLOC_OPERATION_RESIZE,
                        .quiet = true,
                        .account = account,
                        .is_charge = true,
                        .moves = true,
                        .from = block->account};
    block->busy = true;
    call_begin(&call, PTRDIFF_MAX);
    int error = zmalloc_move_to_account(block->p, handle_of(account));
    block->busy = false;
    require(error == 0 || (error == ENOMEM && !is_below(block->account, account)));
    if (error == 0) {
        account_add(block->account, 0 - block->charge, (size_t)0 - 1);
        account_add(account, block->charge, 1);
        int from = block->account;
        block->account = account;
        check_limits(account, from);
    }
    call_end(&call, error != 0, UNTOUCHED);
    check_block(block);
}

/* The fourth kind has room for just what is done then. */
static void operate_account_limit(struct block *block, int account, const struct operation *o)
{
    size_t n = size_in(o);
    const struct operation small = {.a = 4, .b = o->b, .c = o->c % 16};
    size_t used = account != NONE ? model.accounts[account].used : 0;
    if (account == NONE) {
        require(zmalloc_set_account_limit(NULL, n) == error_of(account));
    } else if (o->d >> 4 == 0) {
        set_account_limit(account, n);
    } else if (o->d >> 4 == 1) {
        set_account_limit(account, take_off(used, n));
    } else if (o->d >> 4 < 6) {
        set_account_limit(account, add_up(used, n));
    } else if (block->p != NULL) {
        set_account_limit(account, used + block->charge);
        operate_move(block, account);
    } else {
        set_account_limit(account, used + size_in(&small) + 16);
        operate_acquire(block, BY_MALLOC, true, &small);
    }
}

static void set_account_handler(int account, bool on)
{
    struct account *a = account != NONE ? &model.accounts[account] : NULL;
    errno = UNTOUCHED;
    require(zmalloc_set_account_reclaim_handler(handle_of(account), on ? reclaim : NULL, a) == error_of(account));
    require(errno == UNTOUCHED);
    if (a != NULL)
        a->reclaim_set = on;
}

/* Of one, or of all of its line. */
static void operate_account_handler(int account, const struct operation *o)
{
    set_account_handler(account, o->b & 1);
    for (int i = account; i != NONE && (o->b & 2) != 0; i = model.accounts[i].parent)
        set_account_handler(i, o->b & 1);
}

static void operate_account_peak(int account)
{
    errno = UNTOUCHED;
    require(zmalloc_reset_account_peak(handle_of(account)) == error_of(account) && errno == UNTOUCHED);
    if (account != NONE)
        model.accounts[account].peak = model.accounts[account].used;
}

static void check_program(void)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    struct zmalloc_account_stats program = stats_of(NONE);
    require(zmalloc_get_stats(&stats) == 0);
    require(program.used == stats.used && program.peak == stats.peak && program.limit == stats.limit);
    require(program.external == model.external && program.blocks == ZMALLOC_UNKNOWN);
    require(program.parent == NULL && program.path[0] == '\0');
    require(program.failed == stats.failed_limit - model.failures_of_accounts);
    program.struct_size = sizeof(size_t);
    require(zmalloc_get_account_stats(NULL, &program) == EINVAL);
    program.struct_size = 2 * sizeof(size_t);
    program.peak = UNTOUCHED;
    require(zmalloc_get_account_stats(NULL, &program) == 0 && program.used == model_used());
    require(program.peak == UNTOUCHED);
}

static void operate_account_look(int account)
{
    char path[ZMALLOC_ACCOUNT_PATH];
    size_t live = 0, met = 0;
    errno = UNTOUCHED;
    check_program();
    require(zmalloc_account_path(handle_of(account), path) == 0);
    require(strcmp(path, account != NONE ? model.accounts[account].path : "") == 0);
    require(zmalloc_account_find(path) == handle_of(account));
    for (int i = 0; i < ACCOUNTS; i++)
        live += model.accounts[i].handle != NULL;
    for (struct zmalloc_account *a = NULL; (a = zmalloc_account_next(a)) != NULL; met++)
        require(account_of(a) != NONE);
    require(met == live);
    if (model.refusing[model.thread] != UNKNOWN && !model.starved)
        require(zmalloc_refusing_account() == handle_of(model.refusing[model.thread]));
    require(errno == UNTOUCHED);
}

/* One that was removed is not there any more. */
static void operate_removed(struct block *block, const struct operation *o)
{
    struct zmalloc_account *removed = model.removed;
    struct zmalloc_account_stats stats = {.struct_size = sizeof stats};
    char path[ZMALLOC_ACCOUNT_PATH];
    if (removed == NULL)
        return;
    errno = UNTOUCHED;
    require(zmalloc_account_remove(removed) == EINVAL && zmalloc_set_account_limit(removed, o->b) == EINVAL);
    require(zmalloc_reset_account_peak(removed) == EINVAL && zmalloc_account_path(removed, path) == EINVAL);
    require(zmalloc_set_account_reclaim_handler(removed, reclaim, NULL) == EINVAL);
    require(zmalloc_charge_external_to_account(removed, o->b) == EINVAL);
    require(zmalloc_get_account_stats(removed, &stats) == EINVAL);
    if (block->p != NULL)
        require(zmalloc_move_to_account(block->p, removed) == EINVAL);
    require(errno == UNTOUCHED);
    require(zmalloc_account_create("a", removed) == NULL && errno == EINVAL);
    if (o->b & 1)
        enter(removed, NONE);
}

enum { CODES_OF_ACCOUNTS = 225, CODE_ENTER = CODES_OF_ACCOUNTS + 3 };

static void operate_account(struct block *block, const struct operation *o)
{
    int account = account_in(o);
    switch (o->code - CODES_OF_ACCOUNTS) {
    case 0:
    case 1:
    case 2:
        operate_create(o);
        break;
    case 3:
    case 4:
    case 5:
    case 6:
        enter(handle_of(account), account);
        break;
    case 7:
        account_remove(account);
        break;
    case 8:
    case 9:
    case 10:
        operate_account_limit(block, account, o);
        break;
    case 11:
    case 12:
    case 13:
        operate_move(block, account);
        break;
    case 14:
        charge_external(account, size_in(o), false);
        break;
    case 15:
        uncharge_external(account, o->c & 1 ? SIZE_MAX : size_in(o), false);
        break;
    case 16:
        operate_account_handler(account, o);
        break;
    case 17:
        operate_account_peak(account);
        break;
    case 18:
        operate_account_look(account);
        break;
    default:
        operate_removed(block, o);
    }
    check_account();
    check_cache();
}

/* The custom backend runs out when so much more is taken. */
static void operate_supply(const struct operation *o)
{
    supply.most = o->a / 8 % 4 == 0 ? SIZE_MAX : supply.live + size_in(o) % BATCH;
    model.starved |= FUZZ_CUSTOM && supply.most != SIZE_MAX;
}

/* --------------------------------------------------------------- threads */

static struct worker {
    pthread_t id;
    sem_t turn;
    bool lives;
} workers[THREADS];

static sem_t done;

static bool thread_lives(int thread) { return thread == 0 || workers[thread].lives; }

/* These came last, and have the codes that inputs that are older do not use. */
enum { CODES_LAST = 245, CODE_LEAVE = 253 };

static void operate_last(struct block *block, const struct operation *o)
{
    switch (o->code - CODES_LAST) {
    case 0:
    case 1:
        operate_cache(o);
        break;
    case 2:
        purge();
        break;
    case 3:
        operate_burst(o);
        break;
    case 4:
        operate_steps(block, o);
        break;
    case 5:
        operate_all(o);
        break;
    case 6:
        operate_supply(o);
        break;
    case 7:
        leave_handlers();
        break;
    default:
        model.leave_mode = o->a % LEAVE_MODES;
    }
    check_account();
    check_cache();
}

static void operate(const struct operation *o)
{
    struct block *block = &model.blocks[o->thread_and_block / THREADS];
    model.watermark_actions = 1;
    if (o->code >= CODES_LAST && o->code <= CODE_LEAVE) {
        operate_last(block, o);
        return;
    }
    if (o->code >= CODES_OF_ACCOUNTS && o->code < CODES_LAST) {
        operate_account(block, o);
        return;
    }
    switch (o->code % 20) {
    case 0:
    case 1:
    case 2:
        if (block->p == NULL)
            operate_acquire(block, o->a / 8 % ACQUIRERS, o->d & 1, o);
        else
            operate_release(block, o->a / 8 % RELEASERS);
        break;
    case 3:
    case 4:
        if (block->p != NULL)
            operate_resize(block, o->a / 8 % RESIZERS, o->d & 1, o);
        else
            operate_acquire(block, o->a / 8 % ACQUIRERS, o->d & 1, o);
        break;
    case 5:
        operate_release(block, o->a / 8 % RELEASERS);
        break;
    case 6:
        operate_charge(o);
        break;
    case 7:
        operate_uncharge(o);
        break;
    case 8:
        operate_limit(o);
        break;
    case 9:
        set_exact(o->a & 1);
        break;
    case 10:
        reset_peak();
        break;
    case 11:
        operate_faults(o);
        break;
    case 12:
        fail_after(o->b % 8);
        break;
    case 13:
        pause_faults(o->a & 1);
        break;
    case 14:
        operate_handlers(o);
        break;
    case 15:
        set_watermark(o->d % 6 - 1, size_in(o) % (4 * (size_t)TEXT), o->d < 192);
        break;
    case 16:
        set_reserve(o->a % 8 == 0 ? 0 : size_in(o));
        break;
    case 17:
        operate_look(o);
        break;
    case 18:
        operate_wrongly(o);
        break;
    default:
        operate_dontneed(block);
    }
    check_account();
    check_cache();
}

static void operate_or_leave(const struct operation *o)
{
    if (setjmp(way_out) == 0)
        operate(o);
    else
        calls_abandoned();
}

static void *work(void *ctx)
{
    struct worker *self = ctx;
    for (;;) {
        while (sem_wait(&self->turn) != 0)
            continue;
        if (model.operation == NULL)
            return NULL;
        operate_or_leave(model.operation);
        sem_post(&done);
    }
}

static void run_on_thread(int thread, const struct operation *o)
{
    struct worker *worker = &workers[thread];
    model.thread = thread;
    model.operation = o;
    if (thread == 0) {
        operate_or_leave(o);
        return;
    }
    if (!worker->lives) {
        require(sem_init(&worker->turn, 0, 0) == 0);
        require(pthread_create(&worker->id, NULL, work, worker) == 0);
        worker->lives = true;
        model.may_cache[thread] = model.cache_bound;
    }
    sem_post(&worker->turn);
    while (sem_wait(&done) != 0)
        continue;
}

/* Faults are aimed at a thread by an address, which the next thread may have. */
static void end_thread(int thread)
{
    struct worker *worker = &workers[thread];
    if (thread == 0 || !worker->lives)
        return;
    if (model.faults.owner == thread)
        fail_after(0);
    model.thread = thread;
    model.operation = NULL;
    model.watermark_actions = 1;
    model.current[thread] = NONE;
    sem_post(&worker->turn);
    require(pthread_join(worker->id, NULL) == 0);
    sem_destroy(&worker->turn);
    worker->lives = false;
    model.thread = 0;
    model.holds[thread] = false;
    model.allocated[thread] = false;
    model.paused[thread] = 0;
    model.unsaid_reclaim[thread] = model.unsaid_oom[thread] = false;
    model.may_cache[thread] = 0;
    model.refusing[thread] = NONE;
    check_account();
    check_cache();
}

/* ------------------------------------------------------------ one input */

static void begin(void)
{
    model.thread = 0;
    model.seeds = 0;
    model.reclaim_mode = RECLAIM_GIVE_UP;
    model.oom_mode = OOM_RETURN;
    model.watermark_mode = WATERMARK_LOOK;
    model.leave_mode = LEAVE_SAID_BEFORE;
    model.starved = false;
    model.creations = 0;
    model.removed = NULL;
    for (int i = 0; i < THREADS; i++) {
        model.current[i] = NONE;
        model.refusing[i] = i == 0 ? UNKNOWN : NONE;
    }
    require(zmalloc_used_memory() == 0 && zmalloc_get_limit() == 0 && zmalloc_account_next(NULL) == NULL);
    zmalloc_set_oom_handler(handle_oom);
    zmalloc_set_limit(0); /* so that this thread settles at its first call, as if it had not run before */
    reset_peak();
    set_cache(CACHE_DEFAULT);
}

static void end(void)
{
    model.thread = 0;
    model.operation = NULL;
    model.watermark_actions = 0;
    supply.most = SIZE_MAX;
    leave_handlers();
    while (model.paused[0] != 0)
        pause_faults(false);
    fail_after(0);
    set_limit(0);
    for (int i = 0; i < LEVELS; i++)
        set_watermark(i, 0, false);
    set_handlers(false, false);
    for (struct block *b = model.blocks; b != model.blocks + BLOCKS; b++)
        operate_release(b, FREE);
    for (int i = 0; i < ACCOUNTS; i++)
        uncharge_external(model.accounts[i].handle != NULL ? i : NONE, SIZE_MAX, false);
    uncharge_external(NONE, SIZE_MAX, true);
    set_reserve(0);
    enter(NULL, NONE);
    for (int round = 0; round < ZMALLOC_ACCOUNT_DEPTH; round++) {
        for (int i = 0; i < ACCOUNTS; i++) {
            if (model.accounts[i].handle != NULL)
                account_remove(i);
        }
    }
    for (int i = 1; i < THREADS; i++)
        end_thread(i);
    set_exact(false);
    check_account();
    require(zmalloc_used_memory() == 0);
    set_cache(0);
    require(cached_now() == 0);
}

/* Once: the library has a slot for each of the threads afterwards. */
static void start(void)
{
    for (size_t i = 0; i < TEXT; i++)
        source[i] = (char)('a' + i % 23);
    require(sem_init(&done, 0, 0) == 0);
    model.cache_bound = model.may_cache[0] = CACHE_DEFAULT;
#if FUZZ_CUSTOM
    require(zmalloc_replace_allocator(supply_alloc, supply_realloc, supply_calloc, supply_free) == 0);
    begin();
    account_create(NONE, "a");
    for (int i = 0; i < THREADS; i++) {
        const struct operation go_there = {.code = CODE_ENTER};
        const struct operation allocate = {.thread_and_block = (unsigned char)(i * THREADS), .b = 1};
        run_on_thread(i, &go_there);
        run_on_thread(i, &allocate);
    }
    end();
    supply.pool = supply.live;
    supply.pool_known = true;
#endif
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct operation o;
    if (source[0] == '\0')
        start();
    begin();
    for (; size >= sizeof o; data += sizeof o, size -= sizeof o) {
        memcpy(&o, data, sizeof o);
        if (o.code == UINT8_MAX)
            end_thread(o.thread_and_block % THREADS);
        else
            run_on_thread(o.thread_and_block % THREADS, &o);
    }
    end();
    return 0;
}

#if defined(__SANITIZE_ADDRESS__)
#define FUZZ_ADDRESS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ADDRESS_SANITIZED 1
#endif
#endif

/* What cannot be granted is to be refused, and not to end the program. */
#ifdef FUZZ_ADDRESS_SANITIZED
const char *__asan_default_options(void); /* NOLINT(bugprone-reserved-identifier): the sanitizer's name */
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }
#endif
