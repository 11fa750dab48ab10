#include "zmrun.h"

static size_t greater(size_t a, size_t b)
{
    if (a == ZMALLOC_UNKNOWN || b == ZMALLOC_UNKNOWN)
        return a == ZMALLOC_UNKNOWN ? b : a;
    return a > b ? a : b;
}

/* The greater of two values, so that no peak is lost. */
static struct point merged(struct point a, struct point b)
{
    return (struct point){b.time, greater(a.used, b.used), greater(a.peak, b.peak), greater(a.cached, b.cached),
                          greater(a.rss, b.rss)};
}

void series_add(struct series *series, struct point point)
{
    if (series->count == SERIES_POINTS) {
        for (size_t i = 0; i < SERIES_POINTS / 2; i++)
            series->points[i] = merged(series->points[2 * i], series->points[2 * i + 1]);
        series->count = SERIES_POINTS / 2;
        series->interval *= 2;
    }
    series->points[series->count++] = point;
}
