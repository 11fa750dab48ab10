/* What the preloaded library does besides allocating: it takes its orders from zmrun and shows it the account. */

#ifndef ZMRUN_AGENT_H
#define ZMRUN_AGENT_H

#include "shared.h"

/* Called before the first allocation of the process where that can be told, else before the program's. */
void agent_prepare(void);

/* Called by exec.c in the process that zmrun watches. `agent_leave()` shows the account for the last time before the
 * process image goes, and returns the environment variables that the next image needs, which are valid for good; NULL
 * where nobody watches this process. agent_stay() takes it back when the image has not gone. */
struct agent_variables {
    const char *shared, *preload; /* NAME=VALUE; preload: without the program's own */
};
const struct agent_variables *agent_leave(void);
void agent_stay(void);

/* Shows the account before the process ends without exit handlers. */
enum agent_end { AGENT_EXIT, AGENT_ABORT };
void agent_end(enum agent_end end);

/* The profile, which is in a library of its own, made with sample.c: in the other one this is not there, and its address
 * is NULL. */
struct agent_profile {
    /* Begins to sample. Called before main(), in the process that is profiled. */
    void (*start)(struct shared *shared);
    /* In the child of a fork(). */
    void (*stop)(void);
    /* Stores the profile as that of this moment, unless another thread is just doing so. Not in a signal handler. */
    void (*store)(enum shared_moment moment);
};
extern const struct agent_profile agent_profile __attribute__((weak));

#endif
