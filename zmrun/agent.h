/* What the preloaded library does besides allocating: it takes its orders from zmrun and shows it the account. */

#ifndef ZMRUN_AGENT_H
#define ZMRUN_AGENT_H

/* Called before the first allocation of the process. */
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

#endif
