#include <zmalloc_hooks.h> /* is installed too */

#include "consumer.c"
